"""Pages have one owner, none is lost, and what is written into them is read."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from loratory.errors import InputError
from loratory.serving.pool import PagePool


def check_pages(pool: PagePool) -> None:
    """Each page but the first is free or of one owner."""
    owned = [page for pages in pool.owned.values() for page in pages]
    assert sorted([*owned, *pool.free]) == list(range(1, pool.pages + 1))
    assert not pool.vectors[0].any()


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(-1, 9)), max_size=60))
def test_no_page_has_two_owners_and_none_is_lost(steps):
    pool = PagePool(20, 2, torch.zeros(0))
    for owner, count in steps:
        before = {name: list(pages) for name, pages in pool.owned.items()}
        if count < 0:
            pool.release(owner)
            assert owner not in pool.owned
        elif count > len(pool.free):
            with pytest.raises(InputError, match="the pool is full"):
                pool.allocate(owner, count)
            assert pool.owned == before
        else:
            pool.write(pool.allocate(owner, count)[:, None], torch.full((count, 2), float(owner)))
        check_pages(pool)
        for name, pages in pool.owned.items():
            assert (pool.vectors[pages] == name).all()
    for owner in list(pool.owned):
        pool.release(owner)
    assert len(pool.free) == pool.pages


@given(st.integers(1, 9), st.integers(1, 4), st.integers(1, 5))
def test_a_vector_takes_as_many_pages_as_it_needs_and_comes_back_whole(size, width, count):
    pool = PagePool(60, width, torch.zeros(0))
    pages = pool.pages_per_vector(size)
    pool.vectors[1:] = 7
    vectors = torch.randn(count, size, generator=torch.Generator().manual_seed(0))
    places = pool.allocate("a", count * pages).view(count, pages)
    pool.write(places, vectors)
    assert torch.equal(pool.read(places, size), vectors)
    assert (pages - 1) * width < size <= pages * width
