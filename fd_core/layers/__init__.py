"""Building blocks of models, over ops: linear, embedding, attention, rotary tables."""
