"""Writes a tiny random Phi-3 with its own tokenizer, to run the paper's steps without its weights.

    python scripts/write_tiny_phi3.py FOLDER
    python -m embed_torch --flagfile=configs/embed_phi3_instructed.flags --dtype=float32 \\
        --model=FOLDER --corpus=CORPUS --output=STORE

It is the tests' own, 64 wide with 3 layers and 512 positions, and knows nothing about language.
"""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "embed_torch"))
from written_checkpoints import write_phi3
from written_tokenizers import write_phi3_tokenizer

if __name__ == "__main__":
    if len(sys.argv) != 2 or Path(sys.argv[1]).exists():
        sys.exit("usage: python scripts/write_tiny_phi3.py FOLDER (which must not exist yet)")
    folder = Path(sys.argv[1])
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:  # a kill leaves no half model
        unfinished = Path(scratch) / "model"
        unfinished.mkdir()
        write_phi3(unfinished)
        write_phi3_tokenizer(unfinished)
        unfinished.rename(folder)
    print(f"written: {folder}")
