"A full disk is said, at whatever file it happens, and with room the build ends in the same bytes"
import errno
import os
import resource

import numpy as np
import pandas as pd
import pytest

from rsna_ich.core import InputError
from rsna_ich.data.png import export_png
from rsna_ich.data.store import Store, build_store


def pixels(rows): return [np.random.default_rng(i).integers(-1000, 80, (64, 64)).astype(np.int16) for i in rows.number]

def table(n=40): return pd.DataFrame(dict(image_id=[f'ID_{i:03}' for i in range(n)], path='', number=range(n), series_id=[f's{i//5}' for i in range(n)]))

def build(dest, **kwargs): return build_store(table(), dest, size=64, n_jobs=1, read=pixels, crop=False, **kwargs)

def content(folder): return {o.name: o.read_bytes() for o in sorted(folder.iterdir()) if o.name != '.lock'}

@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    dest = tmp_path_factory.mktemp('whole')
    build(dest)
    return content(dest)

def no_space(*args, **kwargs): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

@pytest.mark.parametrize('size', [100, 100_000, 200_000, 327_000])
def test_file_that_cannot_grow(tmp_path, whole, size):
    "The operating system says so in the middle of a slice, at any place in the store"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        with pytest.raises(InputError, match='no room left'): build(tmp_path)
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    if size > 10_000: assert len(Store(tmp_path, unfinished=True)) == (size-128)//(64*64*2)//5*5
    build(tmp_path)
    assert content(tmp_path) == whole

def test_no_room_for_what_is_on_its_way(tmp_path, whole, monkeypatch):
    "Workers that cannot leave their slices beside the store send them through the pipe"
    monkeypatch.setattr('rsna_ich.data.store.mkdtemp', lambda prefix, dir: str(dir/prefix/'not there'))
    build_store(table(), tmp_path, size=64, n_jobs=2, read=pixels, crop=False)
    assert content(tmp_path) == whole

@pytest.mark.parametrize('method', ['to_parquet', 'to_csv'])
def test_no_room_for_the_tables(tmp_path, whole, monkeypatch, method):
    with monkeypatch.context() as m:
        m.setattr(pd.DataFrame, method, no_space)
        with pytest.raises(InputError, match='no room left'): build(tmp_path)
    build(tmp_path)
    assert content(tmp_path) == whole

def test_another_error_is_not_called_a_full_disk(tmp_path, monkeypatch):
    def says(*args, **kwargs): raise PermissionError(errno.EACCES, 'denied')
    monkeypatch.setattr(pd.DataFrame, 'to_parquet', says)
    with pytest.raises(PermissionError): build(tmp_path)

def test_too_small_from_the_beginning(tmp_path, monkeypatch):
    monkeypatch.setattr('shutil.disk_usage', lambda _: type('Usage', (), dict(free=1000)))
    with pytest.raises(InputError, match='no room: the store needs'): build(tmp_path)

def test_pictures(tmp_path, monkeypatch):
    store = build(tmp_path/'store')
    with monkeypatch.context() as m:
        m.setattr('PIL.Image.Image.save', no_space)
        with pytest.raises(InputError, match='no room left'): export_png(store, tmp_path/'png', n_jobs=1)
    assert not list((tmp_path/'png').glob('*.png'))
    export_png(store, tmp_path/'png', n_jobs=1)
    assert len(list((tmp_path/'png').glob('*.png'))) == 40
