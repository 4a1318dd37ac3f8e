"The store is on the way of an inference without torch: it imports nothing heavy, and prepares a study where torch cannot be imported"
import subprocess
import sys

SCRIPT = '''
import sys
for o in 'torch', 'fastai', 'sklearn', 'skimage', 'matplotlib': sys.modules[o] = None
import rsna_ich.data.crop
assert 'scipy' not in sys.modules
import numpy as np
y, x = np.mgrid[:512, :512]
hu = np.full((4, 512, 512), -1000, np.int16)
hu[:, np.hypot(y-250, x-270) < 180] = 40
small, box = rsna_ich.data.crop.prepare(hu, 224)
assert small.shape == (4, 224, 224) and abs(box.size - 403) < 12, box
'''


def test_prepares_without_torch():
    done = subprocess.run([sys.executable, '-c', SCRIPT], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr[-1000:]
