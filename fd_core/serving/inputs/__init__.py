"""Text in, text out: tokenizer, chat templates, detokenizer, request conversion. No HTTP here."""
