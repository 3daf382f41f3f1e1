"""Build the training corpus: fetch packages, extract their prose, split off the held-out text.

python corpus.py fetch   --work DIR     download the Debian packages (no root needed)
python corpus.py extract --work DIR     write DIR/docs/PACKAGE.jsonl
python corpus.py build   --work DIR     write DIR/train.jsonl, val.jsonl and heldout.jsonl
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from extract import Document, documents
from sources import Source, all_sources

PATTERNS = [
    "*.html", "*.htm", "*.xhtml", "*.html.gz", "*.html.en", "*.dict.dz",
    "*/share/man/man*.gz", "*/share/info/*.gz", "*/help/C/*.page",
]  # fmt: skip
READABLE = re.compile(r"\.(x?html?|html\.en|page|dict\.dz|gz)$")
FOREIGN = re.compile(
    r"/(de|fr|es|it|ja|zh|pt|pt-br|ru|ko|tr|pl|nl|da|cs|sv|nb|nb-no|zh-cn|zh-tw|id|ar|fa|vi|uk|ro|"
    r"hu|el|ca|sk|hr)[-/_]|genindex|py-modindex|/_modules/|/search\.|changelog|/src/|whatsnew|"
    r"release[-_]?notes|/releases?/|licen[cs]e|/info/python|/(struct|trait|enum|fn|macro|constant|"
    r"union|type|primitive|attr|derive|keyword)\.|rust-doc/html/(core|alloc|proc_macro|test)/|\.(de|fr|es|ja|ko|tr|pt-br|zh-cn)\.",
    re.IGNORECASE,
)
HELDOUT_BYTES = 160_000
VAL_BYTES = 600_000
SHINGLE = 13  # words; a training paragraph sharing such a run with held-out text is dropped


def fetch(work: Path) -> None:
    deb = work / "deb"
    deb.mkdir(parents=True, exist_ok=True)
    for source in all_sources():
        if not list(deb.glob(f"{source.package}_*.deb")):
            subprocess.run(["apt-get", "download", "-q", source.package], cwd=deb, check=True)


def unpack(archive: Path, target: str) -> None:
    """Extract the documentation files of a package; a pattern that matches nothing is fine."""
    listing = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(archive)], stdout=subprocess.PIPE)
    command = ["tar", "-x", "-C", target, "--wildcards", "--no-anchored", *PATTERNS]
    subprocess.run(command, stdin=listing.stdout, stderr=subprocess.DEVNULL, check=False)
    listing.wait()


def digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


def package_files(root: Path) -> list[Path]:
    found = [path for path in root.rglob("*") if path.is_file() and not path.is_symlink()]
    found = [path for path in found if READABLE.search(path.name)]
    found = [path for path in found if not FOREIGN.search(str(path.relative_to(root)))]
    return sorted(found, key=lambda path: digest(str(path.relative_to(root))))


def package_documents(source: Source, archive: Path) -> Iterator[Document]:
    """Yield a package's documents in a fixed shuffled order until its cap is reached."""
    total = 0
    with tempfile.TemporaryDirectory() as target:
        unpack(archive, target)
        for path in package_files(Path(target)):
            name = str(path.relative_to(target))
            try:
                for document in documents(path, name):
                    yield document
                    total += document.size()
            except (ValueError, OSError, subprocess.TimeoutExpired) as error:
                print(f"skipped {name}: {error}", file=sys.stderr)
            if total > source.cap:
                return


def extract_one(job: tuple[Source, Path]) -> None:
    source, work = job
    out = work / "docs" / f"{source.package}.jsonl"
    archives = sorted((work / "deb").glob(f"{source.package}_*.deb"))
    if out.exists() or not archives:
        return
    found = list(package_documents(source, archives[-1]))
    out.write_text("".join(json.dumps(vars(document)) + "\n" for document in found))
    print(f"{source.package}: {len(found)} documents, {sum(d.size() for d in found)} bytes", flush=True)


def extract(work: Path) -> None:
    (work / "docs").mkdir(exist_ok=True)
    with multiprocessing.Pool(2, maxtasksperchild=1) as pool:
        pool.map(extract_one, [(source, work) for source in all_sources()], chunksize=1)


def load(work: Path, source: Source) -> Iterator[dict]:
    path = work / "docs" / f"{source.package}.jsonl"
    for line in path.read_text().splitlines() if path.exists() else []:
        yield {**json.loads(line), "package": source.package, "shippable": source.shippable}


def key(text: str) -> bytes:
    """Return a paragraph's identity: case, digits and punctuation do not count."""
    return digest(re.sub(r"[^a-z]+", "", text.lower()))


def trim_headings(blocks: list[list[str]]) -> list[list[str]]:
    """Drop headings left with no text below them."""
    after = [*(block[0] for block in blocks[1:]), "h"]
    return [b for b, kind in zip(blocks, after, strict=bool(blocks)) if (b[0], kind) != ("h", "h")]


def dedupe(docs: Iterable[dict]) -> Iterator[dict]:
    """Drop every paragraph seen before, then documents with little left."""
    seen: set[bytes] = set()
    for doc in docs:
        fresh = []
        for kind, text in doc["blocks"]:
            mark = key(text)
            if kind == "h" or mark not in seen:
                fresh.append([kind, text])
                seen.add(mark)
        doc["blocks"] = trim_headings(fresh)
        least = 40 if doc["package"].startswith("dict-") else 250
        if sum(len(text) for kind, text in doc["blocks"] if kind != "h") >= least:
            yield doc


def render(doc: dict) -> str:
    """Write a document as light Markdown: headings, paragraphs and list items."""
    parts = [f"# {doc['title']}\n"]
    for kind, text in doc["blocks"]:
        parts.append({"h": "\n## ", "p": "\n", "l": "- "}[kind] + text + "\n")
    return "".join(parts)


def take(
    docs: list[dict], wanted: int, usable: Callable[[dict, int], bool]
) -> tuple[list[dict], list[dict]]:
    """Move documents from the front of a list until `wanted` bytes are taken."""
    taken, rest, total = [], [], 0
    for doc in docs:
        size = len(render(doc).encode())
        if total + size <= wanted and usable(doc, size):
            taken.append(doc)
            total += size
        else:
            rest.append(doc)
    return taken, rest


def shingles(text: str) -> Iterator[tuple[str, ...]]:
    words = re.findall(r"[a-z]+", text.lower())
    return zip(*(words[i:] for i in range(SHINGLE)), strict=False)


def decontaminate(docs: list[dict], kept_out: list[dict]) -> None:
    """Remove training paragraphs that share a long run of words with held-out documents."""
    marks = {hash(run) for doc in kept_out for _, text in doc["blocks"] for run in shingles(text)}
    for doc in docs:
        clean = [b for b in doc["blocks"] if not any(hash(run) in marks for run in shingles(b[1]))]
        doc["blocks"] = trim_headings(clean)


def split(docs: list[dict]) -> dict[str, list[dict]]:
    random.Random(7).shuffle(docs)
    heldout, docs = take(docs, HELDOUT_BYTES, lambda d, n: d["shippable"] and 1500 <= n <= 7_000)
    val, docs = take(docs, VAL_BYTES, lambda d, n: n <= 20_000)
    decontaminate(docs, heldout + val)
    train = [doc for doc in docs if doc["blocks"]]
    return {"heldout": heldout, "val": val, "train": train}


def build(work: Path) -> None:
    docs = list(dedupe(doc for source in all_sources() for doc in load(work, source)))
    for name, part in split(docs).items():
        rows = [{**doc, "text": render(doc)} for doc in part]
        (work / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        print(f"{name}: {len(rows)} documents, {sum(len(row['text']) for row in rows)} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", choices=["fetch", "extract", "build"])
    parser.add_argument("--work", type=Path, required=True)
    options = parser.parse_args()
    {"fetch": fetch, "extract": extract, "build": build}[options.step](options.work)


if __name__ == "__main__":
    main()
