"""Scoring one shard of image-text pairs without padding, and without embedding an image or a caption twice."""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import torch

from ..datasets.batches import DecodedBatch
from ..datasets.readers import Example
from .captions import CaptionEncoder
from .forward import embed_images, score_embeddings
from .models import Model, Scored
from .settings import Precision

# Tokenizers of Hugging Face refuse a second thread.
_TOKENIZING = threading.Lock()


@dataclass
class PairScorer:
    """Takes a shard's batches one by one, then scores all their pairs at once.

    Identical images (by hash of their bytes) and identical captions are embedded once for each shard. Captions are sorted
    by length, and each batch is cut to its longest one. Memory holds the shard's embeddings, captions and tokens.
    """

    model: Model
    encoder: CaptionEncoder
    image_flops: float
    device: torch.device
    precision: Precision
    batch_size: int
    flops: float = 0.0
    examples: list[Example] = field(default_factory=list)
    _images: list[torch.Tensor] = field(default_factory=list)
    _image_places: dict[bytes, int] = field(default_factory=dict)
    _image_of: list[int] = field(default_factory=list)
    _captions: dict[str, int] = field(default_factory=dict)
    _caption_of: list[int] = field(default_factory=list)
    _tokens: list[torch.Tensor] = field(default_factory=list)
    _new_images: deque[list[int]] = field(default_factory=deque)

    def prepare(self, batch: DecodedBatch) -> None:
        """Find which images of a batch are new, and tokenize its new captions."""
        new_images, new_captions = [], []
        for i, example in enumerate(batch.examples):
            digest = hashlib.blake2b(example.image, digest_size=16).digest()
            if digest not in self._image_places:
                self._image_places[digest] = len(self._image_places)
                new_images.append(i)
            self._image_of.append(self._image_places[digest])
            caption = str(example.target)
            if caption not in self._captions:
                self._captions[caption] = len(self._captions)
                new_captions.append(caption)
            self._caption_of.append(self._captions[caption])
        self._new_images.append(new_images)
        if new_captions:
            with _TOKENIZING:
                self._tokens.append(self.model.tokenize(new_captions))

    def add(self, batch: DecodedBatch) -> Iterable[tuple[list[Example], Scored]]:
        """Embed the images that were not seen before. Nothing is scored yet."""
        self.examples += [replace(example, image=b"") for example in batch.examples]
        new = self._new_images.popleft()
        if new:
            pixels = torch.from_numpy(batch.pixels if len(new) == len(batch.pixels) else batch.pixels[new])
            self._images.append(embed_images(self.model, pixels.to(self.device, non_blocking=True), self.precision))
            self.flops += self.image_flops * len(new)
        return ()

    def finish(self) -> Iterable[tuple[list[Example], Scored]]:
        """Losses, similarities and embeddings of all pairs, in the order in which they came."""
        if not self.examples:
            return ()
        text_UD = self._embed_captions(torch.cat(self._tokens))
        image_UD = torch.cat(self._images)
        image_of, caption_of = (torch.tensor(x, device=self.device) for x in (self._image_of, self._caption_of))
        return [(self.examples, score_embeddings(image_UD[image_of], text_UD[caption_of]))]

    def _embed_captions(self, tokens_UL: torch.Tensor) -> torch.Tensor:
        lengths_U = self.encoder.lengths(tokens_UL)
        order_U = lengths_U.argsort(stable=True)
        embedded: list[torch.Tensor] = []
        for places in order_U.split(self.batch_size):
            embedded.append(self.encoder(tokens_UL[places].to(self.device, non_blocking=True), self.precision))
            self.flops += len(places) * self.encoder.flops(int(lengths_U[places].max()))
        text_UD = torch.cat(embedded)
        return text_UD[order_U.argsort().to(self.device)]
