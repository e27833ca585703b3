"""A tokenizer that a process can be sent: it imports little."""

import zlib

LENGTH = 6


def tokens_of_words(captions):
    import torch

    rows = [[zlib.crc32(word.encode()) % 1000 + 1 for word in text.split()[:LENGTH]] for text in captions]
    if any("unspeakable" in text for text in captions):
        raise ValueError("an unspeakable word")
    return torch.tensor([row + [0] * (LENGTH - len(row)) for row in rows])
