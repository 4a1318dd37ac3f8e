"A few hundred of the damaged files of `mutator.py`, which `make hard` goes through by the hundred thousand"
import numpy as np
import pytest
from mutator import KINDS, RARE, all_good_are_read, as_bytes, good_files, mutated, slice_of, survives, write_folder

from rsna_ich.data.dicom import read_hu

FILES = good_files(real=False)


def test_good_files_are_good():
    "Without damage each gives HU, and those without loss the same"
    want = read_hu(as_bytes(slice_of()))
    for name, data in FILES.items():
        hu = survives(data)
        assert hu is not None, name
        first = hu if hu.ndim == 2 else hu[2 if name == 'enhanced' else 0]  # its first frame lies highest
        if 'JPEG Extended' not in name: assert np.array_equal(first, np.maximum(want, 0) if name == 'table' else want), name


def test_same_seed_same_damage():
    assert all(mutated(seed, FILES) == mutated(seed, FILES) for seed in range(40))


@pytest.mark.parametrize('start', range(0, 400, 50))
def test_damaged_files(start):
    kinds = set()
    for seed in range(start, start + 50):
        kind, data = mutated(seed, FILES)
        kinds.add(kind)
        survives(data)
    assert len(kinds) > len({*KINDS})//2


@pytest.mark.parametrize('kind', sorted({*KINDS, *RARE}, key=lambda o: o.__name__), ids=lambda o: o.__name__)
def test_each_kind(kind):
    import random
    for seed in range(12 if kind not in RARE else 4):
        rng = random.Random(seed)
        for data in rng.sample(list(FILES.values()), 2): survives(kind(rng, data, list(FILES.values())))


@pytest.mark.parametrize('form', ['folder', 'zip'])
def test_good_slices_among_damaged_ones(tmp_path, form, monkeypatch):
    "All are read, whatever lies beside them, and nothing is written outside, whatever the members' names"
    monkeypatch.setattr('rsna_ich.data.files.MAX_BYTES', 5_000_000)
    source, good = write_folder(tmp_path/'inside'/'study', range(900, 930), FILES, form, bomb_bytes=6_000_000)
    read, left = all_good_are_read(source, good)
    assert len(good) == 6 and left > 8
    assert sorted(p.name for p in tmp_path.iterdir()) == ['inside'] and [p.name for p in (tmp_path/'inside').iterdir()] == ['study']
