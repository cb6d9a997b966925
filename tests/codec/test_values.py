"""Kept values come back bit for bit, and no bytes do more than be refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from avalanche_compress.codec import (
    ByRow,
    ByteReader,
    ByteWriter,
    Codebook,
    Constant,
    CorruptStreamError,
    EntropyCoded,
    FixedPoint,
    Float,
    codebook,
    entries_of,
    fixed_point,
    kmeans_1d,
    pack_bits,
    quantise_codebook,
    quantise_fixed_point,
    read_values,
    skip_values,
    unpack_bits,
    write_values,
)

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("kind", [Codebook, EntropyCoded])
def test_codes_are_coded_once_to_choose_a_way_and_to_write_it(kind, monkeypatch):
    coded = {"encode_codes": 0, "pack_bits": 0}
    for name in coded:
        function = getattr(codebook, name)

        def counted(*given, name=name, function=function):
            coded[name] += 1
            return function(*given)

        monkeypatch.setattr(codebook, name, counted)
    book = kind(torch.randint(3, (500,), dtype=torch.int32), torch.tensor([-1.0, 0.0, 2.0]))
    assert torch.equal(
        read_values(ByteReader(written(book.smallest())), 500, torch.float32).decode(),
        book.decode(),
    )
    assert max(coded.values()) == 1


def written(values):
    writer = ByteWriter()
    write_values(values, writer)
    return writer.getvalue()


def kept(values, form, bits):
    """Values in one of the forms that there are."""
    if form == "codebook":
        return quantise_codebook(values, min(bits, 6))
    if form == "constant":
        return Constant(values.new_full((1,), 0.5), len(values))
    if form == "by row" and len(values):
        width = 1 + bits % 3
        rows = next(r for r in (7, 5, 3, 2, 1) if len(values) % (r * width) == 0 or r == 1)
        width = width if len(values) % (rows * width) == 0 else 1
        chosen = torch.arange(rows) % 2 == bits % 2
        read = entries_of(chosen, width, len(values))
        return ByRow(chosen, width, Float(values[read]), quantise_codebook(values[~read], 3))
    return quantise_fixed_point(values, bits) if form == "fixed point" else Float(values)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    count=st.integers(0, 300),
    bits=st.integers(2, 16),
    scale=st.sampled_from([1e-30, 1.0, 1e30]),
    form=st.sampled_from(["floats", "codebook", "fixed point", "constant", "by row"]),
)
def test_values_come_back_bit_for_bit(seed, count, bits, scale, form):
    numbers = torch.randn(count, generator=torch.Generator().manual_seed(seed)) * scale
    values = kept(numbers, form, bits)
    reader = ByteReader(written(values))
    read = read_values(reader, count, torch.float32)
    reader.finish()
    assert type(read) is type(values)
    assert read.bits == values.bits
    assert torch.equal(read.decode(), values.decode())
    assert torch.equal(read.words(), values.words())
    assert bool((read.words() >= 0).all() and (read.words() < 1 << read.word_bits).all())


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    count=st.integers(0, 300),
    bits=st.integers(2, 16),
    form=st.sampled_from(["floats", "codebook", "fixed point", "constant", "by row"]),
    dtype=st.sampled_from(DTYPES),
)
def test_what_is_skipped_is_what_would_be_read(seed, count, bits, form, dtype):
    numbers = torch.randn(count, generator=torch.Generator().manual_seed(seed)).to(dtype)
    values = kept(numbers, form, bits)
    reader = ByteReader(written(values))
    assert skip_values(reader, count, dtype) == values.word_bits
    reader.finish()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 300), st.integers(1, 6))
def test_the_smallest_form_has_the_same_numbers_and_the_fewer_bytes(seed, count, bits):
    book = quantise_codebook(
        torch.randn(count, generator=torch.Generator().manual_seed(seed)), bits
    )
    smallest = book.smallest()
    assert torch.equal(smallest.decode(), book.decode())
    assert len(written(smallest)) <= min(len(written(book)), len(written(Float(book.decode()))))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 6), st.integers(1, 4), st.integers(1, 3))
def test_rows_come_back_in_their_places_in_the_fewest_bytes(seed, rows, width, tables):
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(tables, rows, width, generator=generator)
    chosen = torch.rand(rows, generator=generator) < 0.5
    table[:, ~chosen] = 0.25
    numbers, rest = table.flatten(), tables * width * int((~chosen).sum())
    kept = Float(numbers[entries_of(chosen, width, len(numbers))])
    values = ByRow(chosen, width, kept, Constant(torch.tensor([0.25]), rest))
    assert torch.equal(values.decode(), numbers)
    assert values.bits_of(len(numbers)) == 32 * len(kept.values)
    smallest = values.smallest()
    assert torch.equal(smallest.decode(), numbers)
    assert len(written(smallest)) == min(len(written(values)), len(written(Float(numbers))))


def test_rows_that_do_not_fit_are_refused():
    floats, ones = Float(torch.ones(4)), Constant(torch.ones(1), 4)
    good = ByRow(torch.tensor([True, False]), 2, floats, ones)
    assert read_values(ByteReader(written(good)), 8, torch.float32).decode().tolist() == [1.0] * 8
    for count in (0, 2, 6, 7):  # tables of another size
        with pytest.raises(CorruptStreamError, match="rows"):
            read_values(ByteReader(written(good)), count, torch.float32)
    nested = ByRow(torch.tensor([True, False]), 4, good, Constant(torch.ones(1), 8))
    for function in (read_values, skip_values):
        with pytest.raises(CorruptStreamError, match="unknown kind"):
            function(ByteReader(written(nested)), 16, torch.float32)


def test_gradients_of_centroids_are_those_of_autograd():
    book = quantise_codebook(torch.randn(200, generator=torch.Generator().manual_seed(0)), 3)
    centroids = book.centroids.clone().requires_grad_()
    members = torch.linspace(-1, 1, 200)
    (expected,) = torch.autograd.grad((centroids[book.codes.long()] * members).sum(), centroids)
    torch.testing.assert_close(book.parameter_gradient(members), expected)


def test_what_may_be_trained_are_the_centroids_and_a_copy_has_its_own():
    values = torch.randn(20)
    for form in ("floats", "fixed point"):
        assert kept(values, form, 4).parameter is None
        with pytest.raises(TypeError, match="nothing to train"):
            kept(values, form, 4).parameter_gradient(values)
    book = kept(values, "codebook", 3)
    before, copied = book.decode(), book.copy()
    copied.parameter.add_(1)
    assert torch.equal(book.decode(), before)
    assert torch.equal(copied.decode(), before + 1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_floats_of_every_precision_come_back(dtype):
    values = torch.randn(50).to(dtype)
    read = read_values(ByteReader(written(Float(values))), 50, dtype).decode()
    assert read.dtype == dtype
    assert torch.equal(read, values)


@settings(max_examples=300, deadline=None)
@given(
    kind=st.integers(0, 3),
    data=st.binary(max_size=60),
    count=st.integers(0, 60),
    dtype=st.sampled_from(DTYPES),
)
def test_any_bytes_are_values_or_corrupt(kind, data, count, dtype):
    reader = ByteReader(bytes([kind]) + data)
    try:
        values = read_values(reader, count, dtype)
    except CorruptStreamError:
        return
    assert values.decode().shape == (count,)
    assert 1 <= values.bits <= 64
    reader = ByteReader(bytes([kind]) + data)
    assert skip_values(reader, count, dtype) == values.word_bits


@pytest.mark.parametrize("head", [[0], [1, 2], [1, 1 << 16], [1, 1 << 62], [2, 8, 4], [2, 16, 0]])
@pytest.mark.parametrize("count", [1 << 33, 1 << 62, 1 << 90])
def test_counts_of_terabytes_are_refused_at_once(head, count):
    writer = ByteWriter()
    for number in head:
        writer.write_uint(number)
    writer.write_raw(b"\0" * 100)
    with pytest.raises(CorruptStreamError):
        read_values(ByteReader(writer.getvalue()), count, torch.float32)


@pytest.mark.parametrize(
    "numbers",
    [
        [3],
        [1, 0],
        [1, (1 << 16) + 1],
        [2, 0, 0],
        [2, 1, 0],
        [2, 17, 0],
        [2, 8, 2033],
        [2, 8, 1 << 62],
    ],
)
def test_widths_and_exponents_that_no_encoder_writes_are_refused(numbers):
    writer = ByteWriter()
    for number in numbers:
        writer.write_uint(number)
    writer.write_raw(b"\x01" * 400_000)
    with pytest.raises(CorruptStreamError):
        read_values(ByteReader(writer.getvalue()), 3, torch.float32)


# ------------------------------------------------------------------ quantisers


def int32(numbers):
    return torch.tensor(numbers, dtype=torch.int32)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 500), st.integers(1, 8))
def test_a_codebook_holds_what_kmeans_found_and_survives_packing(seed, size, bits):
    values = torch.randn(size, generator=torch.Generator().manual_seed(seed))
    book = quantise_codebook(values, bits)
    centroids, codes = kmeans_1d(values, 2**bits)
    assert torch.equal(book.decode(), centroids[codes.long()])
    assert book.bits <= bits
    codes = unpack_bits(pack_bits(book.codes, book.bits), book.bits, size)
    assert torch.equal(Codebook(codes, book.centroids).decode(), book.decode())


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 500), st.integers(2, 16))
def test_fixed_point_survives_packing_with_an_offset(seed, size, bits):
    values = torch.randn(size, generator=torch.Generator().manual_seed(seed))
    word = quantise_fixed_point(values, bits)
    assert torch.equal(word.codes, fixed_point(values, bits)[0])
    offset = 2 ** (bits - 1)
    codes = unpack_bits(pack_bits(word.codes + offset, bits), bits, size) - offset
    assert torch.equal(FixedPoint(codes, bits, word.fraction_bits).decode(), word.decode())


@pytest.mark.parametrize(
    ("count", "bits"), [(0, 1), (1, 1), (2, 1), (3, 2), (4, 2), (5, 3), (256, 8)]
)
def test_bits_are_the_fewest_that_name_every_centroid(count, bits):
    assert Codebook(int32([]), torch.arange(float(count))).bits == bits


@pytest.mark.parametrize("quantise", [quantise_codebook, quantise_fixed_point])
def test_nothing_and_all_zero_are_quantised_without_error(quantise):
    for values in (torch.empty(0), torch.zeros(7)):
        assert torch.equal(quantise(values, 4).decode(), values)


def test_quantising_to_a_codebook_twice_changes_nothing():
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    once = quantise_codebook(values, 5).decode()
    assert torch.equal(quantise_codebook(once, 5).decode(), once)


def test_codes_without_a_centroid_are_refused():
    for codes in ([2], [-1]):
        with pytest.raises(ValueError, match="codes span"):
            Codebook(int32(codes), torch.tensor([0.0, 1.0]))


def test_codes_that_do_not_fit_the_word_are_refused():
    for code in (8, -8):
        with pytest.raises(ValueError, match="codes span"):
            FixedPoint(int32([code]), bits=4, fraction_bits=0)


def test_wrong_shapes_dtypes_and_widths_are_refused():
    with pytest.raises(ValueError, match="flatten"):
        Codebook(int32([[0]]), torch.tensor([0.0]))
    with pytest.raises(ValueError, match="int32"):
        Codebook(torch.tensor([0]), torch.tensor([0.0]))
    with pytest.raises(ValueError, match="bits"):
        FixedPoint(int32([0]), bits=17, fraction_bits=0)
    with pytest.raises(ValueError, match="bits"):
        quantise_codebook(torch.zeros(3), 17)
