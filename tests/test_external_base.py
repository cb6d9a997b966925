"""A base that the archive does not hold: whoever loads it has the weights, or their seed."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from streams_for_tests import logits, make_stream, mlp

from avalanche_compress import HALRP, ArchiveError, LoRA, load_archive, save_archive
from avalanche_compress.inspection import inspect_archive, verify_archive


def seeded(seed):
    torch.manual_seed(seed)
    return mlp()


@pytest.mark.parametrize("method", [LoRA, HALRP])
def test_an_archive_has_a_checksum_of_an_external_base(method, tmp_path):
    stream, sizes = make_stream(2), {}
    for base in ("given", "external"):
        model = seeded(0)
        optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
        strategy = method(
            model=model, optimizer=optimizer, base=base, train_epochs=2, evaluator=None
        )
        for experience in stream.train_stream:
            strategy.train(experience)
        sizes[base] = save_archive(strategy.network, tmp_path / base)
    stores = strategy.network.weight_stores
    assert sizes["external"] < sizes["given"] - sum(4 * s.base.numel() for s in stores) + 100
    assert [store.shared_bits for store in stores] == [128] * len(stores)

    networks = [
        strategy.network,
        load_archive(tmp_path / "given", partial(seeded, 1)),
        load_archive(tmp_path / "external", partial(seeded, 0)),
    ]
    found = [logits(network, stream.test_stream, range(2)) for network in networks]
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(*found))
    save_archive(networks[2], tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "external").read_bytes()

    with pytest.raises(ArchiveError, match=r"build_model\(\) has other values"):
        load_archive(tmp_path / "external", partial(seeded, 1))
    verify_archive(tmp_path / "external")
    assert len(inspect_archive(tmp_path / "external").tasks) == 2
