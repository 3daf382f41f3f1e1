"""Derive chat examples from the training documents by template.

    python chat.py --work DIR     read DIR/train.jsonl, write DIR/chat.jsonl

Questions name a document, a section or a dictionary entry; answers are the text found there.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

Turn = tuple[str, str]

SYSTEMS = (
    "You are a helpful assistant.",
    "You are a helpful assistant. Answer in plain English.",
    "You answer questions about software.",
    "Answer briefly.",
    "You are a concise technical assistant.",
)
ASK_TOPIC = (
    "What is {}?",
    "Tell me about {}.",
    "Explain {}.",
    "Can you explain {}?",
    "What can you tell me about {}?",
    "Please describe {}.",
    "Write a short text about {}.",
    "I want to know about {}.",
    "Give me an introduction to {}.",
    "Tell me something about {}",
)
ASK_WORD = (
    "What is {}?",
    "What does {} mean?",
    "Define {}.",
    "What does the word {} mean?",
    "Explain the term {}.",
    "What is the meaning of {}?",
)
ASK_COMMAND = (
    "What does {} do?",
    "What is {}?",
    "How does {} work?",
    "What is {} for?",
    "Describe {}.",
)
ASK_MORE = ("Tell me more.", "Go on.", "Can you say more?", "What else?", "Please continue.")
ASK_SECTION = ("And what about {}?", "What about {}?", "Now explain {}.", "Tell me about {} too.")
ASK_SHORT = (
    "Summarize this: {}",
    "Summarize the following text.\n\n{}",
    "What is the main point of this text?\n\n{}",
)
GREETINGS = ("Hello", "Hello!", "Hi", "Hi!", "Hey", "Hi there", "Good morning", "Good evening!")
GREETING_ANSWERS = (
    "Hello! How can I help you today?",
    "Hi! What would you like to know?",
    "Hello! Ask me about software, commands or words.",
)
SMALL_TALK: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (GREETINGS, GREETING_ANSWERS),
    (
        ("Who are you?", "What are you?", "What is your name?", "Introduce yourself."),
        (
            "I am a very small language model that ships with fd-core. I was trained on software "
            "documentation, so I can write simple English, but I often get facts wrong.",
            "I am the small language model embedded in fd-core. I am here to show that the engine "
            "works; please do not rely on what I say.",
        ),
    ),
    (
        ("What can you do?", "How can you help me?", "What do you know?"),
        (
            "I can write short English texts about software. I am small, so my answers may be wrong.",
            "I can answer simple questions about commands and technical terms, though not always "
            "correctly.",
        ),
    ),
    (
        ("How are you?", "How are you doing?", "How is it going?"),
        ("I am doing well, thank you. How can I help you?", "I am fine, thank you!"),
    ),
    (
        ("Thanks", "Thank you!", "Thank you very much.", "Thanks a lot!"),
        ("You are welcome!", "You are welcome. Is there anything else you would like to know?"),
    ),
    (("Goodbye", "Bye!", "See you later."), ("Goodbye!", "Goodbye, and have a nice day!")),
)
GENERIC = re.compile(
    r"^(description|overview|introduction|notes?|options|details|summary|examples?|usage|synopsis|"
    r"see also|parameters|returns?|files|bugs|name|history|purpose|about|syntax|arguments|remarks|"
    r"note|warning|tip|reference|contents|abstract|getting started|basic.*|general.*|other.*)$",
    re.IGNORECASE,
)
MANUAL = re.compile(r"/man/man[18]/")
NAMEABLE = re.compile(r"[A-Za-z][\w .,'()/-]{1,59}")
POINTER = re.compile(
    r"\b(this (page|chapter|section|document|manual|appendix|article|guide|tutorial)|following|below|"
    r"above|previous|next section)\b",
    re.IGNORECASE,
)


class Maker:
    """Builds chats with one random generator, so that a run can be repeated."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def ask(self, forms: tuple[str, ...], topic: str) -> str:
        """Fill a question form, now and then typed the lazy way."""
        question = self.random.choice(forms).format(topic)
        if self.random.random() < 0.15:
            question = question.rstrip("?.")
        return question.lower() if self.random.random() < 0.15 else question

    def small_talk(self) -> list[Turn]:
        questions, answers = self.random.choice(SMALL_TALK)
        return [(self.random.choice(questions), self.random.choice(answers))]

    def wordnet(self, doc: dict) -> list[Turn]:
        """Turn "(noun) gloss." into "As a noun, WORD means gloss."."""
        word = doc["title"]
        answer = []
        for _, text in doc["blocks"][:3]:
            kind, gloss = text[1:].split(") ", 1)
            article = "an" if kind[0] == "a" else "a"
            answer.append(f"As {article} {kind}, {word} means {gloss}")
        topic = self.random.choice((word, f'"{word}"'))
        return [(self.ask(ASK_WORD, topic), "\n".join(answer))]

    def entry(self, doc: dict) -> list[Turn]:
        texts = [text for _, text in doc["blocks"]]
        turns = [(self.ask(ASK_WORD, doc["title"]), texts[0])]
        if len(texts) > 1 and self.random.random() < 0.4:
            turns.append((self.random.choice(ASK_MORE), texts[1]))
        return turns

    def page(self, doc: dict) -> list[Turn]:
        """Ask for a document, then now and then for more of it or for one of its sections."""
        parts = sections(doc)
        title, answers = parts[0]
        forms = ASK_COMMAND if MANUAL.search(doc["path"]) else ASK_TOPIC
        named = answers and NAMEABLE.fullmatch(title)
        turns = [(self.ask(forms, title), answers[0])] if named else []
        if len(answers) > 1 and self.random.random() < 0.4:
            turns.append((self.random.choice(ASK_MORE), answers[1]))
        if turns and len(parts) > 1 and self.random.random() < 0.4:
            heading, found = self.random.choice(parts[1:])
            turns.append((self.ask(ASK_SECTION, heading), found[0]))
        return turns

    def section(self, heading: str, answers: list[str]) -> list[Turn]:
        turns = [(self.ask(ASK_TOPIC, heading), answers[0])]
        if len(answers) > 1 and self.random.random() < 0.3:
            turns.append((self.random.choice(ASK_MORE), answers[1]))
        return turns

    def summary(self, doc: dict) -> list[Turn]:
        """Take a paragraph's first sentence as its summary."""
        texts = [text for kind, text in doc["blocks"] if kind == "p" and 250 < len(text) < 900]
        for text in texts[:1]:
            first = re.match(r"[A-Z][^.]{40,200}\.(?= [A-Z])", text)
            if first:
                return [(self.random.choice(ASK_SHORT).format(text), first[0])]
        return []

    def chats(self, doc: dict) -> Iterator[list[Turn]]:
        """Yield the chats one document gives."""
        if doc["package"] == "dict-wn":
            yield from [self.wordnet(doc)] if self.random.random() < 0.35 else []
        elif doc["package"].startswith("dict-"):
            yield self.entry(doc)
        else:
            yield self.page(doc)
            yield self.summary(doc) if self.random.random() < 0.15 else []
            for heading, answers in sections(doc)[1:]:
                yield self.section(heading, answers)
        if self.random.random() < 0.06:
            yield self.small_talk()

    def render(self, turns: list[Turn]) -> str:
        """Write a chat in the ChatML form the chat template gives."""
        system = self.random.choice(SYSTEMS) if self.random.random() < 0.25 else ""
        text = f"<|im_start|>system\n{system}<|im_end|>\n" if system else ""
        for question, answer in turns:
            text += f"<|im_start|>user\n{question}<|im_end|>\n"
            text += f"<|im_start|>assistant\n{answer}<|im_end|>\n"
        return text


def answer_from(blocks: list[list[str]], start: int) -> str:
    """Return the paragraph at `start`, with the list it introduces if it ends in a colon."""
    text = blocks[start][1]
    if not text.endswith(":"):
        return text
    items = []
    for kind, item in blocks[start + 1 : start + 7]:
        if kind != "l":
            break
        items.append(f"\n- {item}")
    return text + "".join(items) if items else ""


def sections(doc: dict) -> list[tuple[str, list[str]]]:
    """Return (heading, answers) pairs, the document's own title first."""
    parts: list[tuple[str, list[str]]] = [(doc["title"], [])]
    for index, (kind, text) in enumerate(doc["blocks"]):
        if kind == "h":
            same = GENERIC.match(text) and not parts[-1][1]
            parts.append((parts.pop()[0] if same else text, []))
        elif kind == "p" and 60 <= len(text) <= 800 and not POINTER.search(text[:150]):
            answer = answer_from(doc["blocks"], index)
            parts[-1][1].extend([answer] if answer else [])
    return [parts[0], *filter(is_usable, parts[1:])]


def is_usable(part: tuple[str, list[str]]) -> bool:
    heading, answers = part
    return bool(answers and NAMEABLE.fullmatch(heading) and not GENERIC.match(heading))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    work = parser.parse_args().work
    maker = Maker(seed=11)
    count = size = 0
    with (work / "chat.jsonl").open("w") as out:
        for line in (work / "train.jsonl").open():
            for turns in filter(None, maker.chats(json.loads(line))):
                text = maker.render(turns)
                out.write(json.dumps({"text": text}) + "\n")
                count, size = count + 1, size + len(text)
    print(f"chat: {count} examples, {size} bytes")


if __name__ == "__main__":
    main()
