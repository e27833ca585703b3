"""Files that nobody meant to give: hidden ones, and those that systems put between the others."""

from __future__ import annotations

# macOS, Synology, QNAP and Windows.
SYSTEM = {"__MACOSX", "@eaDir", "@__thumb", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found"}
COPIES = {".git", ".ipynb_checkpoints", ".Trash", ".cache"}


def is_hidden(path: str) -> bool:
    """Whether a file or one of the folders in its path is hidden. The path counts from what the user named."""
    return any((part.startswith(".") and part not in (".", "..")) or part in SYSTEM for part in path.split("/"))


def is_hidden_member(path: str) -> bool:
    """The same for a member of a tar, which may have been made of a hidden folder: only known ones are left out."""
    *folders, name = path.split("/")
    return name.startswith(".") or any(folder in SYSTEM or folder in COPIES for folder in folders)
