"A few hundred of the damaged files of `mutator.py`, which `make hard` goes through by the hundred thousand"
import sys

import numpy as np
import pytest
from mutator import KINDS, RARE, all_good_are_read, as_bytes, good_files, main, mutated, slice_of, steps, survives, write_folder

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


def test_a_part_of_a_run_is_like_the_whole():
    "Of each tenth, four fifths alone, a tenth in folders, a tenth in zips; every file once"
    tried = [(form, n) for form, numbers in steps(10_000) for n in numbers]
    assert [n for _, n in tried] == list(range(10_000))
    for part in tried[:2000], tried[8000:]:
        assert [sum(form == o for form, _ in part) for o in ('alone', 'folder', 'zip')] == [1600, 200, 200]
    assert [n for _, numbers in steps(37) for n in numbers] == list(range(37))


def test_a_run_goes_on_with_the_same_code_only(tmp_path, monkeypatch, capsys):
    "Counts and failures are kept, nothing is tried twice, and other code starts anew"
    keep, tried, stopped = tmp_path/'hard.json', [], []
    monkeypatch.setattr(sys, 'argv', ['mutator.py', '--files', '40', '--seed', '7', '--keep', str(keep)])
    monkeypatch.setattr('mutator.good_files', lambda: FILES)
    monkeypatch.setattr('mutator.try_together', lambda progress, form, seeds, files: tried.extend(seeds))

    def alone(progress, seed, files):
        if seed == 30 and not stopped:
            stopped.append(True)
            raise RuntimeError('killed')
        tried.append(seed)
        progress.counts['cut', 'FAILED' if seed == 9 else 'HU'] += 1
        if seed == 9: progress.failed('seed 9, cut', ValueError('no'))
    monkeypatch.setattr('mutator.try_alone', alone)
    with pytest.raises(RuntimeError, match='killed'): main()
    with pytest.raises(SystemExit) as ended: main()
    assert ended.value.code and sorted(set(tried)) == list(range(7, 47)) and len(tried) <= 44  # at most one step again
    assert 'seed 9, cut: ValueError: no' in capsys.readouterr().out.split('goes on')[1]
    monkeypatch.setattr('mutator.code_state', lambda: 'other')
    with pytest.raises(SystemExit, match='other code'): main()
