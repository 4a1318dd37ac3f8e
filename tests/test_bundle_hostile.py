"Bundles from strangers: truncated, altered, with a pickle or with shapes of terabytes, they are refused before anything is taken"
import json
import pickle
import resource
import shutil
import struct

import pytest

from rsna_ich.core import InputError
from rsna_ich.model.bundle import default_bundle
from rsna_ich.predict.predictor import load_predictor


class Calls:
    "What a pickle that calls something looks like"
    def __reduce__(self): return (print, ('UNPICKLED',))


def weights(shape, n=4):
    "A safetensors file that claims a shape"
    size = 4*n if shape is None else 4
    for o in shape or (): size *= o
    header = json.dumps({'x.weight': dict(dtype='F32', shape=list(shape or [n]), data_offsets=[0, size])}).encode()
    return struct.pack('<Q', len(header)) + header + bytes(4*n)


def changed(**values):
    "Harm that gives the description other values"
    def change(bundle):
        path = bundle/'config.json'
        path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return change


HARM = {
    'pictures of terabytes': changed(size=10**6),
    'crops of petabytes': changed(store_size=10**7),
    'a million neighbours': changed(neighbours=10**6),
    'no size': changed(size=0),
    'a temperature of nothing': changed(temperature=0),
    'a temperature that is no number': changed(temperature=float('nan')),
    'a bias that is no number': changed(bias=[None]*6),
    'made by a newer version': changed(version='99.0', pool='attention'),
    'config nested without end': lambda b: (b/'config.json').write_text('['*100_000),
    'no config': lambda b: (b/'config.json').unlink(),
    'config is no JSON': lambda b: (b/'config.json').write_text('{"name": '),
    'config is a list': lambda b: (b/'config.json').write_text('[1, 2]'),
    'config is empty': lambda b: (b/'config.json').write_text('{}'),
    'weights truncated': lambda b: (b/'model.safetensors').write_bytes((b/'model.safetensors').read_bytes()[:5000]),
    'weights are a pickle': lambda b: (b/'model.safetensors').write_bytes(pickle.dumps(Calls())),
    'weights of terabytes': lambda b: (b/'model.safetensors').write_bytes(weights([10**6, 10**6])),
    'weights with a header of exabytes': lambda b: (b/'model.safetensors').write_bytes(struct.pack('<Q', 2**60) + b'{}'),
    'plan truncated': lambda b: (b/'model.onnx').write_bytes((b/'model.onnx').read_bytes()[:5000]),
    'plan is a pickle': lambda b: (b/'model.onnx').write_bytes(pickle.dumps(Calls())),
}


def copied(folder, engine):
    "The shipped bundle, for ONNX Runtime, or without its plans, which leaves PyTorch"
    bundle = shutil.copytree(default_bundle(), folder/'bundle')
    if engine == 'torch':
        for plan in bundle.glob('*.onnx'): plan.unlink()
    return bundle


@pytest.fixture(scope='module', params=['onnx', 'torch'])
def engine(request, tmp_path_factory):
    "An engine, its libraries loaded, with which the bundle works while nobody harms it"
    assert load_predictor(copied(tmp_path_factory.mktemp(request.param), request.param))
    return request.param


@pytest.mark.parametrize('harm', HARM)
def test_harmed_bundle(tmp_path, harm, engine, capsys):
    if 'plan' in harm and engine == 'torch': pytest.skip('this engine does not open that file')
    bundle = copied(tmp_path, engine)
    HARM[harm](bundle)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError) as refused: load_predictor(bundle)
    if 'weights' in harm: assert 'not a safetensors file' in refused.value.reason
    assert 'UNPICKLED' not in capsys.readouterr().out
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB
