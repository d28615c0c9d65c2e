"""The Triton kernels against plain PyTorch: compiled on a GPU, else interpreted where Triton is installed."""

import pytest
import torch

pytest.importorskip("triton", reason="Triton comes with PyTorch for CUDA")

from loratory.serving.attention import PagedTexts
from loratory.serving.kernels import add_changes, attend_rows
from loratory.serving.pool import Pages
from loratory.serving.rows import OwnersInPlace, RowOwners

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CLOSE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
SHAPES = {  # inputs, outputs, rank, page
    "pages divide": (64, 96, 4, 32),
    "pages do not divide": (50, 37, 5, 24),
    "a page holds a vector": (20, 70, 3, 128),
    "many ranks": (48, 40, 80, 16),
}
ROWS = [2, 0, 3, 1, *[0] * 5, *[3] * 2, *[1] * 21, 2, 1, 3, 0, 1, 1]
NOBODY = 3


def random_pages(random, places, rank, size, width, dtype) -> Pages:
    """Vectors in pages in no order; the last place is nobody's, the one before it has one rank less."""
    parts = -(-size // width)
    count = places * rank * parts
    vectors = torch.randn(1 + count, width, generator=random).to(dtype) / size**0.5
    vectors[0] = 0
    table = (torch.randperm(count, generator=random) + 1).view(places, rank, parts).int()
    table[NOBODY] = 0
    table[NOBODY - 1, -1] = 0
    return Pages(vectors.to(DEVICE), table.to(DEVICE), size)


@pytest.mark.parametrize("dtype", CLOSE, ids=str)
@pytest.mark.parametrize("times", [1, 7])
@pytest.mark.parametrize("shape", SHAPES)
def test_kernels_add_what_plain_products_add(shape, times, dtype):
    if dtype == torch.bfloat16 and DEVICE == "cpu":
        pytest.skip("Triton's interpreter multiplies bfloat16 as integers")
    inputs, outputs, rank, width = SHAPES[shape]
    random, places = torch.Generator().manual_seed(0), torch.tensor(ROWS).repeat_interleave(times)
    a = random_pages(random, 4, rank, inputs, width, dtype)
    b = random_pages(random, 4, rank, outputs, width, dtype)
    x = torch.randn(len(places), inputs, generator=random).to(DEVICE, dtype)
    y = torch.randn(len(places), outputs, generator=random).to(DEVICE, dtype)
    inner = torch.einsum("ni,nri->nr", x.float(), a.read(places).float())
    expected = y.float() + torch.einsum("nr,nro->no", inner, b.read(places).float())
    before = y.clone()
    found = add_changes(y, x, RowOwners(ROWS, DEVICE).tiles(times), a, b)
    assert found is y
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=CLOSE[dtype])
    assert torch.equal(found[places == NOBODY], before[places == NOBODY])


def test_rows_of_no_tile_stay_and_a_table_may_be_a_part_of_a_wider_one():
    random = torch.Generator().manual_seed(0)
    a, b = (random_pages(random, 4, 3, size, 16, torch.float32) for size in (40, 30))
    wide = torch.full((4, 100), 7, dtype=torch.int32, device=DEVICE)
    part = wide[:, 20 : 20 + a.table[0].numel()].unflatten(1, (3, -1))
    part.copy_(a.table)
    x, y = torch.randn(6, 40, device=DEVICE), torch.randn(6, 30, device=DEVICE)
    inputs = torch.zeros(6, 9, dtype=torch.int32, device=DEVICE)
    inputs[0, 3:6] = torch.tensor([1, 2, 5])
    before = y.clone()
    add_changes(y, x, OwnersInPlace(inputs[:, 0], inputs[:, 3:6]).tiles(1), Pages(a.vectors, part, 40), b)
    expected = before[2:5] + x[2:5] @ a.read(1).T @ b.read(1)
    torch.testing.assert_close(y[2:5], expected, rtol=0, atol=1e-5)
    assert torch.equal(y[[0, 1, 5]], before[[0, 1, 5]])


@pytest.mark.parametrize("dtype", CLOSE, ids=str)
@pytest.mark.parametrize(("queries", "heads", "size"), [(6, 2, 24), (3, 3, 16)])
def test_a_row_attends_to_all_of_its_text_and_to_no_other(queries, heads, size, dtype):
    if dtype == torch.bfloat16 and DEVICE == "cpu":
        pytest.skip("Triton's interpreter multiplies bfloat16 as integers")
    random, length, layer = torch.Generator().manual_seed(0), 72, 1
    lengths, seats = [1, 70, 33], [2, 0, 1]
    table = (torch.randperm(3 * 4 * length, generator=random) + 1).view(3, 4, length).int()
    vectors = torch.randn(1 + table.numel(), heads * size, generator=random).to(dtype)
    query = torch.randn(3, queries, size, generator=random).to(dtype)
    inputs = torch.tensor([[9, last - 1, seat] for last, seat in zip(lengths, seats)], dtype=torch.int32).to(DEVICE)
    texts = PagedTexts(vectors.to(DEVICE), table.to(DEVICE), inputs[:, 2], inputs[:, 1])
    found = attend_rows(query.to(DEVICE), texts, layer, heads, size**-0.5)
    for row, (last, seat) in enumerate(zip(lengths, seats)):
        keys, values = (vectors[table[seat, 2 * layer + i, :last]].float().view(last, heads, size) for i in (0, 1))
        grouped = query[row].float().view(heads, -1, size)
        shares = (torch.einsum("hgd,thd->hgt", grouped, keys) * size**-0.5).softmax(-1)
        expected = torch.einsum("hgt,thd->hgd", shares, values).flatten(0, 1)
        torch.testing.assert_close(found[row].float().cpu(), expected, rtol=0, atol=CLOSE[dtype])
