"""Damaged and hostile DICOM files by the thousand, from a seed, and what the package makes of them

`make hard` runs this file on 100,000 of them; `test_mutated.py` on a few hundred."""
import argparse
import collections
import gzip
import hashlib
import io
import json
import random
import resource
import struct
import sys
import tempfile
import time
import warnings
import zipfile
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (CTImageStorage, DeflatedExplicitVRLittleEndian, EnhancedCTImageStorage, ExplicitVRBigEndian, ExplicitVRLittleEndian,
                         ImplicitVRLittleEndian, JPEG2000Lossless, JPEGExtended12Bit, JPEGLosslessSV1, JPEGLSLossless, RLELossless)

import rsna_ich
from rsna_ich.core import atomic_path, real_data
from rsna_ich.data.dicom import HU_FLOOR, SliceError, header_reason, quirks_of, read_header, read_hu
from rsna_ich.data.headers import read_fields

SIZE = 40
MOST_SECONDS, MOST_MEMORY = 10, 2**30  # For one file, of this process; the box has its own clock and limit
LONG = {b'OB', b'OD', b'OF', b'OL', b'OW', b'SQ', b'UC', b'UN', b'UR', b'UT', b'OV', b'SV', b'UV'}
NUMBERS = [0, 1, 2, 7, 8, 12, 15, 16, 17, 24, 31, 32, 33, 64, 255, 256, 511, 513, 4096, 32767, 32768, 65535]
TEXTS = ['', ' ', '0', '-1', '1', '1e400', 'nan', 'inf', '-inf', '1e-320', '2147483647', '99999999999999999999', '-2147483648', 'x', '1.5.2',
         '\\', '\\'*99, '1\\2\\3', '0\\0\\0\\0\\0\\0', 'CT', 'MR', 'LOCALIZER', '../../x', '\x1b$B', '\0\0', '1'*70_000, '1\\'*40_000, '\xff\xfe']
LENGTHS = [0, 1, 2, 3, 8, 254, 255, 65534, 65535, 2**24, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1]
STREAMS = {JPEG2000Lossless: lambda a: imagecodecs.jpeg2k_encode(a, codecformat='J2K', level=0, reversible=True),
           JPEGLSLossless: imagecodecs.jpegls_encode,
           JPEGLosslessSV1: lambda a: imagecodecs.jpeg8_encode(a, lossless=True, bitspersample=16),
           JPEGExtended12Bit: lambda a: imagecodecs.jpeg8_encode(a & 4095, level=95, bitspersample=12)}


# Good files to damage

def head(seed=0):
    "Stored values of a disc of brain in air, 0 to 4095"
    y, x = np.mgrid[-1:1:SIZE*1j, -1:1:SIZE*1j]
    values = np.where(np.hypot(x, y) < .8, 1060, 24) + np.random.default_rng(seed).normal(0, 5, y.shape)
    return values.round().astype(np.uint16)


def slice_of(syntax=ExplicitVRLittleEndian, frames=1, **tags):
    "A CT slice as a dataset"
    ds, compressed = Dataset(), syntax in STREAMS or syntax == RLELossless
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian if compressed else syntax
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = CTImageStorage
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = '1.2.3'
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.PatientID, ds.InstanceNumber = '1.2', '1.2.1', 'P', 1
    ds.Modality, ds.PhotometricInterpretation, ds.SamplesPerPixel = 'CT', 'MONOCHROME2', 1
    ds.ImageType, ds.WindowCenter, ds.WindowWidth = ['ORIGINAL', 'PRIMARY', 'AXIAL'], [40, 600], [80, 2800]
    ds.ImagePositionPatient, ds.ImageOrientationPatient, ds.PixelSpacing = [0, 0, 5], [1, 0, 0, 0, 1, 0], [.5, .5]
    ds.Rows = ds.Columns = SIZE
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
    ds.RescaleSlope, ds.RescaleIntercept, ds.PixelPaddingValue = 1, -1024, 0
    stored = np.stack([head(i) for i in range(frames)])
    ds.PixelData = stored.astype('>u2' if syntax == ExplicitVRBigEndian else '<u2').tobytes()
    ds['PixelData'].VR = 'OW'
    if frames > 1: ds.NumberOfFrames = frames
    if syntax == RLELossless: ds.compress(RLELossless)
    elif compressed:
        ds.PixelData = encapsulate([STREAMS[syntax](o) for o in stored])
        ds['PixelData'].VR, ds['PixelData'].is_undefined_length = 'OB', True
        ds.file_meta.TransferSyntaxUID = syntax
    for k, v in tags.items(): setattr(ds, k, v)
    return ds


def item(**tags):
    ds = Dataset()
    for k, v in tags.items(): setattr(ds, k, v)
    return ds


def enhanced():
    "Three frames with functional groups"
    groups = [item(PlanePositionSequence=[item(ImagePositionPatient=[0, 0, 5*z])]) for z in (2, 0, 1)]
    shared = item(PlaneOrientationSequence=[item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])],
                  PixelValueTransformationSequence=[item(RescaleSlope=1, RescaleIntercept=-1024, RescaleType='HU')])
    ds = slice_of(frames=3, SharedFunctionalGroupsSequence=[shared], PerFrameFunctionalGroupsSequence=groups)
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = EnhancedCTImageStorage
    return ds


def looked_up():
    "A modality LUT in the place of slope and intercept"
    table = item(LUTDescriptor=[4096, 0, 16], ModalityLUTType='HU')
    table.add_new('LUTData', 'OW', np.maximum(np.arange(4096) - 1024, 0).astype('<u2').tobytes())
    ds = slice_of(ModalityLUTSequence=[table])
    del ds.RescaleSlope, ds.RescaleIntercept
    return ds


def as_bytes(ds):
    f = io.BytesIO()
    with warnings.catch_warnings(action='ignore'): ds.save_as(f, enforce_file_format=True)
    return f.getvalue()


def good_files(real=True):
    "Bytes by name: a file of each kind, and the smaller real ones where they are at hand"
    plain = ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian, RLELossless
    found = {o.name: as_bytes(slice_of(o)) for o in (*plain, *STREAMS)}
    found |= {'frames': as_bytes(slice_of(JPEG2000Lossless, frames=3)), 'enhanced': as_bytes(enhanced()), 'table': as_bytes(looked_up())}
    folder = real_data('awkward') if real else None
    if folder: found |= {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.stat().st_size < 170_000}
    return found


# Damage

def elements(data):
    "(start, value's start, end) of the elements of an explicit little endian file, as far as they can be walked"
    at, found = 132, []
    while at + 8 <= len(data):
        vr, length, value = data[at+4:at+6], int.from_bytes(data[at+6:at+8], 'little'), at + 8
        if vr in LONG: length, value = int.from_bytes(data[at+8:at+12], 'little'), at + 12
        elif not vr.isalpha(): break
        end = value + length if length != 0xffffffff else len(data)
        if end > len(data): break
        found.append((at, value, end))
        at = end
    return found


def flip_bits(rng, data, others):
    data = bytearray(data)
    start, end = rng.choice([(0, len(data)), (128, min(1500, len(data))), (len(data)//2, len(data))])
    for _ in range(rng.choice([1, 2, 8, 60])): data[rng.randrange(start, end)] ^= 1 << rng.randrange(8)
    return bytes(data)


def cut(rng, data, others): return data[:rng.randrange(len(data))]


def cut_out(rng, data, others):
    start = rng.randrange(128, len(data))
    return data[:start] + data[start + rng.choice([1, 2, 7, 64, 999]):]


def splice(rng, data, others):
    "A part of this or another file in the middle of it"
    other = rng.choice(others)
    start, at = rng.randrange(len(other)), rng.randrange(128, len(data))
    return data[:at] + other[start:start + rng.choice([2, 30, 400, 5000])] + data[at:]


def change_element(rng, data, others):
    "Another length, type of value or value, the element twice, away, or exchanged with another one"
    found = elements(data)
    if len(found) < 2: return flip_bits(rng, data, others)
    start, value, end = rng.choice(found)
    kind = rng.randrange(7)
    if kind == 0:
        wide = value - start == 12
        n = rng.choice(LENGTHS)
        return data[:value - (4 if wide else 2)] + (struct.pack('<I', n) if wide else struct.pack('<H', n & 0xffff)) + data[value:]
    if kind == 1: return data[:start+4] + rng.choice([b'SQ', b'UN', b'OB', b'US', b'DS', b'IS', b'LO', b'FD', b'AT', b'??', b'\0\0']) + data[start+6:]
    if kind == 2: return data[:end] + data[start:end]*rng.choice([1, 3, 500]) + data[end:]
    if kind == 3: return data[:start] + data[end:]
    if kind == 4:
        a, b = sorted(rng.sample(found, 2))
        return data[:a[0]] + data[b[0]:b[2]] + data[a[2]:b[0]] + data[a[0]:a[2]] + data[b[2]:]
    if kind == 5: return data[:value] + rng.randbytes(end - value) + data[end:]
    return with_value(data, (start, value, end), rng.choice(TEXTS).encode('latin1')) if value - start == 8 else data[:value] + data[end:]


def with_value(data, where, text):
    "The file with another value in an element whose length has 16 bits"
    start, value, end = where
    text = (text + b' '*(len(text) % 2))[:65534]
    return data[:value-2] + struct.pack('<H', len(text)) + text + data[end:]


SHORTS = {k: struct.pack('<HH', 0x28, e) for k, e in dict(samples=2, rows=0x10, cols=0x11, allocated=0x100, stored=0x101, high=0x102, sign=0x103,
                                                          padding=0x120, limit=0x121).items()}
DECIMALS = [struct.pack('<HH', g, e) for g, e in [(0x28, 8), (0x28, 0x1050), (0x28, 0x1051), (0x28, 0x1052), (0x28, 0x1053), (0x28, 0x1054),
                                                  (0x20, 0x32), (0x20, 0x37), (0x28, 0x30), (8, 8), (8, 0x60), (8, 0x16), (8, 5), (0x28, 4)]]


def lie(rng, data, others):
    "Sizes, bits, frames, scales and types that are absurd"
    for _ in range(rng.choice([1, 1, 2, 4])):
        found = [o for o in elements(data) if o[0] > 132]
        numbers = [o for o in found if data[o[0]:o[0]+4] in SHORTS.values() and o[2] - o[1] == 2]
        texts = [o for o in found if data[o[0]:o[0]+4] in DECIMALS and o[1] - o[0] == 8]
        if numbers and (rng.random() < .5 or not texts):
            start, value, end = rng.choice(numbers)
            data = data[:value] + struct.pack('<H', rng.choice(NUMBERS)) + data[end:]
        elif texts: data = with_value(data, rng.choice(texts), rng.choice(TEXTS).encode('latin1'))
        if rng.random() < .2 and found:
            frames = b'\x28\0\x08\0IS' + struct.pack('<H', 10) + rng.choice([b'2147483647', b'0000100000', b'0000000002', b'-000000001'])
            data = data[:found[0][0]] + frames + data[found[0][0]:]
    return data


def nest(rng, data, others):
    "Sequences in sequences, none of them closed, or many empty items"
    found = elements(data) or [(132, 140, 140)]
    at = rng.choice(found)[0]
    level = b'\x00\x52\x29\x92SQ\0\0\xff\xff\xff\xff' + b'\xfe\xff\x00\xe0\xff\xff\xff\xff'
    items = b'\xfe\xff\x00\xe0\0\0\0\0'*rng.choice([3, 3000, 400_000])
    groups = b'\x00\x52\x30\x92SQ\0\0' + struct.pack('<I', len(items)) + items
    return data[:at] + rng.choice([level*rng.choice([3, 300, 5000]), groups, b'\x09\0\x10\x10UN\0\0\xff\xff\xff\xff'*40]) + data[at:]


def damage_stream(rng, data, others):
    "Where the pixels are: the codestream's header, sizes and contents"
    starts = [i for mark in (b'\xff\x4f\xff\x51', b'\xff\xd8\xff', b'\xfe\xff\x00\xe0') if (i := data.find(mark, 300)) > 0]
    if not starts: return flip_bits(rng, data, others)
    start, data = max(starts), bytearray(data)
    for _ in range(rng.choice([1, 2, 6])):
        at = min(start + rng.choice([rng.randrange(4, 60), rng.randrange(4, 400), rng.randrange(4, 20_000)]), len(data) - 4)
        what = rng.choice([bytes([rng.randrange(256)]), struct.pack('>I', rng.choice([0, 1, 2**16, 2**31, 2**32 - 1])), b'\xff\xd9', b'\xff\xff', b'\0\0\0\0'])
        data[at:at+len(what)] = what
    return bytes(data)


def bomb(rng, data, others):
    "What becomes far more than it is: deflated zeros, or very many empty elements"
    meta = as_bytes(slice_of(DeflatedExplicitVRLittleEndian))
    start = elements(meta)[-1][2] if rng.random() < .5 else 132 + 12 + int.from_bytes(meta[140:144], 'little')
    if rng.random() < .2: return meta[:start] + zlib.compress(bytes(300_000_000), 9)[2:-4]
    if rng.random() < .5: return meta[:start] + zlib.compress(data[132:]*2000, 9)[2:-4]
    return data[:-SIZE] + b''.join(struct.pack('<HH2sH', 0x7fe1, i & 0xffff, b'LO', 0) for i in range(rng.choice([10, 60_000])))*rng.choice([1, 9])


KINDS = [flip_bits, flip_bits, cut, cut_out, splice, change_element, change_element, lie, lie, lie, nest, damage_stream, damage_stream, damage_stream]
RARE = {bomb: .004}


def mutated(seed, files):
    "(kind, bytes) of one damaged file"
    rng = random.Random(seed)
    others = list(files.values())
    data, kind = rng.choice(others), rng.choice(KINDS)
    for rare, share in RARE.items():
        if rng.random() < share: kind = rare
    data = kind(rng, data, others)
    if rng.random() < .15 and kind is not bomb and len(data) > 300: data = rng.choice(KINDS)(rng, data, others)
    return kind.__name__, data


# What must hold for each

def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss*1024


def survives(data, name='hostile.dcm'):
    "HU or None, where there is a `SliceError` that names the file; anything else is a failure"
    start, before = time.process_time(), peak()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        try:
            header = read_header(data, name)
            assert isinstance(quirks_of(header), list)
            assert header_reason(header) is None or isinstance(header_reason(header), str)
        except SliceError as e: assert e.path == name and e.reason
        try: read_fields(named(data, name))
        except SliceError as e: assert e.reason and '\n' not in e.reason
        try:
            hu = read_hu(data, name)
            assert hu.dtype == np.int16 and hu.ndim in (2, 3) and hu.size and hu.min() >= HU_FLOOR
        except SliceError as e:
            assert e.path == name and e.reason and '\n' not in e.reason and len(e.reason) < 1000
            hu = None
    assert time.process_time() - start < MOST_SECONDS, f'{time.process_time() - start:.1f} s'
    assert peak() - before < MOST_MEMORY, f'{(peak() - before)/2**20:,.0f} MB'
    return hu


def named(data, name):
    f = io.BytesIO(data)
    f.name = name
    return f


def write_folder(dest, seeds, files, form='folder', bomb_bytes=700_000_000):
    "Good slices among damaged ones, in a folder or a zip; the names of the good ones"
    content, good = {}, []
    for i, seed in enumerate(seeds):
        content[f'{i:05}_bad.dcm'] = mutated(seed, files)[1]
        if i % 5 == 0:
            ds = slice_of(InstanceNumber=i + 1, ImagePositionPatient=[0, 0, 5*i])
            ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f'1.2.3.{i + 1}'
            ds.SeriesInstanceUID, ds.StudyInstanceUID, ds.PatientID = '1.9.1', '1.9', 'good'
            name = f'{i:05}_good.dcm'
            if form == 'zip': name = ['', '../../', '/', 'C:\\'][i//5 % 4] + name
            content[name] = as_bytes(ds)
            good.append(name)
    Path(dest).mkdir(parents=True)
    if form == 'folder':
        for name, data in content.items(): (Path(dest)/name).write_bytes(data)
        (Path(dest)/'bomb.dcm.gz').write_bytes(gzip.compress(bytes(bomb_bytes), 1))
        return Path(dest), good
    with zipfile.ZipFile(Path(dest)/'study.zip', 'w', zipfile.ZIP_DEFLATED) as z:
        for name, data in content.items(): z.writestr(name, data)
    return Path(dest)/'study.zip', good


def all_good_are_read(source, good):
    "Headers and pixels of everything in a folder or zip; how many damaged files were usable, and how many were left out"
    from rsna_ich.data.slices import frame_rows, read_slices
    from rsna_ich.data.upright import read_series
    table = frame_rows(read_slices(source, n_jobs=1))
    assert table.status.str.len().gt(0).all()
    ours = table[table.path.str.endswith('good.dcm') & table.status.eq('ok')]
    assert len(ours) == len(good), f'{len(ours)} of {len(good)} good slices in the table'
    want = read_hu(as_bytes(slice_of()))
    pixels = read_series(ours)
    assert len(pixels) == len(good) and all(np.array_equal(o, want) for o in pixels)
    rest = table[~table.path.str.endswith('good.dcm') & table.status.eq('ok')]
    failed = sum(isinstance(o, Exception) for o in read_series(rest))
    return len(rest) - failed, len(table) - len(ours) - len(rest) + failed


def code_state():
    "A digest of what is tried and of what tries it: a run goes on only with the same"
    package = Path(rsna_ich.__file__).parent
    digest = hashlib.sha256()
    for path in [*sorted(package.rglob('*.py')), Path(__file__)]: digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


class Progress:
    "What has been counted, in a file from which a run that was killed goes on"

    def __init__(self, path, args):
        self.path, self.plan = path, dict(files=args.files, seed=args.seed, code=code_state())
        self.counts, self.done, self.seconds, self.slowest, self.memory = collections.Counter(), 0, 0., [0., 0], 0
        self.failures = []
        self.since = time.monotonic()
        if not path or not Path(path).exists(): return
        kept = json.loads(Path(path).read_text())
        if kept['plan'] != self.plan: sys.exit(f'{path}: of another run or other code, {kept["plan"]}')
        self.counts.update({(kind, result): n for kind, result, n in kept['counts']})
        self.done, self.seconds, self.slowest, self.memory, self.failures = (kept[o] for o in ('done', 'seconds', 'slowest', 'memory', 'failures'))
        print(f'goes on after {self.done:,} files', flush=True)

    def failed(self, what, error):
        self.failures.append(f'{what}: {type(error).__name__}: {str(error)[:300]}')
        print(self.failures[-1], flush=True)

    def keep(self):
        self.seconds += time.monotonic() - self.since
        self.since = time.monotonic()
        self.memory = max(self.memory, peak())
        if not self.path: return
        kept = dict(plan=self.plan, done=self.done, seconds=self.seconds, slowest=self.slowest, memory=self.memory, failures=self.failures,
                    counts=[[*o, n] for o, n in self.counts.items()])
        with atomic_path(self.path) as temporary: Path(temporary).write_text(json.dumps(kept))

    def table(self):
        yield f'code {self.plan["code"]}, seed {self.plan["seed"]}'
        yield from self.failures
        yield f'{"":16}{"HU":>10}{"named error":>14}{"FAILED":>8}'
        for kind in sorted({k for k, _ in self.counts}):
            yield f'{kind:16}' + ''.join(f'{self.counts[kind, o]:{w},}' for o, w in (('HU', 10), ('named error', 14), ('FAILED', 8)))
        failed = sum(n for (_, o), n in self.counts.items() if o == 'FAILED')
        yield (f'{self.done:,} damaged files in {self.seconds:,.0f} s; the slowest took {self.slowest[0]:.1f} s of it (seed {self.slowest[1]}); '
               f'{self.memory/2**20:,.0f} MB at most; {failed} failed')


def try_alone(progress, seed, files):
    kind, data = mutated(seed, files)
    began = time.monotonic()
    try: progress.counts[kind, 'HU' if survives(data) is not None else 'named error'] += 1
    except Exception as e:
        progress.counts[kind, 'FAILED'] += 1
        progress.failed(f'seed {seed}, {kind}', e)
    progress.slowest = max(progress.slowest, [time.monotonic() - began, seed])


def try_together(progress, form, seeds, files):
    with tempfile.TemporaryDirectory() as d:
        try:
            read, left = all_good_are_read(*write_folder(Path(d)/'x', seeds, files, form))
            progress.counts[form, 'HU'] += read
            progress.counts[form, 'named error'] += left
        except Exception as e:
            progress.counts[form, 'FAILED'] += 1
            progress.failed(f'{form} from seed {seeds[0]}', e)


TOGETHER = 200  # Damaged files in one folder or zip


FORMS = ['alone']*4 + ['folder'] + ['alone']*4 + ['zip']


def steps(files):
    "(form, numbers) of each step: of ten, eight try files alone, one a folder and one a zip, so that a part of a run is like the whole"
    size = max(1, min(TOGETHER, files//len(FORMS)))
    for i, first in enumerate(range(0, files, size)): yield FORMS[i % len(FORMS)], range(first, min(first + size, files))


def run(args):
    progress, files = Progress(args.keep, args), good_files()
    for form, numbers in steps(args.files):
        if numbers.stop <= progress.done: continue
        seeds = range(args.seed + numbers.start, args.seed + numbers.stop)
        if form == 'alone':
            for seed in seeds: try_alone(progress, seed, files)
        else: try_together(progress, form, seeds, files)
        progress.done = numbers.stop
        progress.keep()
        if progress.done % 2000 == 0: print(f'{progress.done:,} after {progress.seconds:,.0f} s', flush=True)
    return progress


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--files', type=int, default=100_000, help='how many, a tenth of them in folders and a tenth in zips')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--keep', help='a file for the counts so far; started again with it, a run goes on where it was')
    progress = run(parser.parse_args())
    print('\n' + '\n'.join(progress.table()))
    sys.exit(any(o == 'FAILED' for _, o in progress.counts))


if __name__ == '__main__': main()
