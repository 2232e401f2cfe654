"""Copies embeddings that another store has already: of the same text, by the same encoder."""

from pathlib import Path

import numpy as np

from embed_torch.cli import UserError
from embed_torch.files import file_sha256
from embed_torch.manifest import (
    MANIFEST,
    TEXT_HASHES,
    TOKENS,
    WINDOW_ROWS,
    Manifest,
    read_array,
    read_manifest,
    read_windows,
)
from embed_torch.store import StoreWriter, read_truncated

# Settings of a store that its embeddings do not depend on: the weights have their own hash.
_MAY_DIFFER = (
    "encoder",
    "texts_sha256",
    "category_names_sha256",
    "poolings",
    "default_pooling",
)


class Reused:
    """A complete store of the same encoder.

    Attributes:
      sha256: the hash of its manifest, by which a journal identifies the store.
    """

    def __init__(self, folder: Path, manifest: Manifest):
        """Opens the store in `folder`, to copy from it into a store with this manifest.

        Raises:
          UserError: it is not a complete store, is damaged, or was made with other settings.
        """
        self._folder = folder
        self._manifest = read_manifest(folder)
        before, now = self._manifest.settings, manifest.settings
        other = [
            name
            for name in {**now, **before}
            if name not in _MAY_DIFFER and before.get(name) != now.get(name)
        ]
        other += sorted({*manifest.poolings} - {*self._manifest.poolings})
        if other:
            raise UserError(
                f"--reuse={folder} was made with other {', '.join(other)}: leave --reuse out"
            )
        self._text_hashes = read_array(folder, self._manifest, TEXT_HASHES)
        self.sha256 = file_sha256(folder / MANIFEST)

    def look_up(self, text_hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The rows of `text_hashes` [n, 2] that the store has, and its rows for them, ascending."""
        wanted = _as_scalars(text_hashes)
        known, row_of = np.unique(_as_scalars(self._text_hashes), return_index=True)
        if not known.size:
            return row_of, row_of
        place = np.searchsorted(known, wanted).clip(max=len(known) - 1)
        (rows,) = np.nonzero(known[place] == wanted)
        source = row_of[place[rows]]
        order = np.argsort(source, kind="stable")
        return rows[order], source[order]

    def copy_rows(self, writer: StoreWriter, poolings: tuple[str, ...]) -> np.ndarray:
        """Copies the reviews that the store has; returns the rows that are left to embed.

        Raises:
          UserError: a copied row is not as it was written.
        """
        rows, source = self.look_up(writer.text_hashes)
        for name in poolings:
            windows = np.unique(source // WINDOW_ROWS).tolist()
            for first, block in read_windows(self._folder, self._manifest, name, windows):
                part = slice(*np.searchsorted(source, (first, first + WINDOW_ROWS)))
                writer.array(name)[rows[part]] = block[source[part] - first]
        tokens = read_array(self._folder, self._manifest, TOKENS)
        uncut = np.array(tokens)
        truncated = read_truncated(self._folder, self._manifest)
        uncut[truncated["row"].to_numpy()] = truncated["tokens_before"].to_numpy()
        writer.tokens[rows], writer.tokens_uncut[rows] = tokens[source], uncut[source]
        return np.setdiff1d(np.arange(len(writer.tokens)), rows)


def _as_scalars(hashes: np.ndarray) -> np.ndarray:
    """Pairs [n, 2] as sortable records [n]."""
    return np.ascontiguousarray(hashes).view([("first", "uint64"), ("second", "uint64")])[:, 0]
