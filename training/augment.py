"""Random crops and flips of training images, drawn so that every rank and every device draws the same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

# How large a batch is, and which of its examples, int64 [n], are meant.
Places = tuple[int, torch.Tensor]


def augment_views(
    views: Mapping[str, torch.Tensor],
    names: Iterable[str],
    how: str,
    generator: torch.Generator,
    places: Places | None = None,
) -> dict[str, torch.Tensor]:
    """The views of these names, augmented. Models that see the same view see the very same augmented images.

    Every view is augmented by the same random numbers, so that what the learner sees does not depend on who else trains.
    """
    done: dict[int, torch.Tensor] = {}
    before = generator.get_state()
    after = None
    found = {}
    for name in names:
        view = views[name]
        if id(view) not in done:
            generator.set_state(before)
            done[id(view)] = augment(view, how, generator, places)
            after = generator.get_state() if after is None else after
        found[name] = done[id(view)]
    if after is not None:
        generator.set_state(after)
    return found


def augment(
    pixels_BHWC: torch.Tensor, how: str, generator: torch.Generator, places: Places | None = None
) -> torch.Tensor:
    """Random horizontal flips, and crops after reflecting an eighth of the side; on the device, in uint8.

    `generator` lives on the CPU, so that every device draws the same. `places` says which of a whole batch's images these
    are: the random numbers are drawn for all of them.
    """
    if how == "none":
        return pixels_BHWC
    B, size = pixels_BHWC.shape[:2]
    device = pixels_BHWC.device
    whole, own = (B, slice(None)) if places is None else places
    columns_BW = torch.arange(size).expand(B, size)
    rows_BH = columns_BW
    if how == "crop-flip":
        margin = max(1, size // 8)
        down_B1, right_B1 = (torch.randint(-margin, margin + 1, (whole, 1), generator=generator)[own] for _ in range(2))
        rows_BH, columns_BW = reflect(rows_BH + down_B1, size), reflect(columns_BW + right_B1, size)
    flip_B = (torch.rand(whole, 1, generator=generator) < 0.5)[own]
    columns_BW = torch.where(flip_B, columns_BW.flip(1), columns_BW)
    index_B = torch.arange(B, device=device)[:, None, None]
    return pixels_BHWC[index_B, rows_BH.to(device)[:, :, None], columns_BW.to(device)[:, None, :]]


def reflect(index: torch.Tensor, size: int) -> torch.Tensor:
    """Indices past an edge come back from it: -1 is 1, `size` is size - 2."""
    index = index.abs()
    return torch.where(index >= size, 2 * (size - 1) - index, index)
