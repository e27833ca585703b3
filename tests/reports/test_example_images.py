"""The images of examples on a page."""

from __future__ import annotations

from dataclasses import replace

from curate.datasets.spec import find_dataset, load_config
from curate.reports.example_images import shown_images
from support.collection import make_collection


def test_a_shard_that_cannot_be_read_hides_no_other_shards_images(tmp_path):
    made = make_collection(tmp_path)
    spec = find_dataset("pairs", load_config(made.toml))
    wanted = {(f"{shard:05d}", f"{shard:05d}0003") for shard in range(3)}
    assert set(shown_images(spec, wanted)) == wanted
    first = tmp_path / "data" / "00000.tar"
    first.write_bytes(first.read_bytes()[:1024])
    found = shown_images(spec, wanted)
    assert set(found) == {name for name in wanted if name[0] != "00000"}
    assert all(one.image.startswith("data:image/png;base64,") and one.caption for one in found.values())
    assert shown_images(replace(spec, train=(str(tmp_path / "gone" / "*.tar"),)), wanted) == {}
