"Package metadata from settings.ini, version from rsna_ich/__init__.py (pyproject.toml names what is dynamic)"
import re
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
config = ConfigParser(delimiters=['='])
config.read(here/'settings.ini', encoding='utf-8')
cfg = config['DEFAULT']
version = re.search(r'^__version__ = "([^"]+)"', (here/'rsna_ich/__init__.py').read_text(encoding='utf-8'), re.M)[1]
statuses = ['1 - Planning', '2 - Pre-Alpha', '3 - Alpha', '4 - Beta', '5 - Production/Stable']
pythons = ['3.11', '3.12', '3.13']
extras = {key.removesuffix('_requirements'): cfg[key].split() for key in cfg if key.endswith('_requirements')}

setup(
    version=version,
    license='Apache-2.0',
    author=cfg['author'],
    keywords=cfg['keywords'].split(),
    classifiers=['Development Status :: ' + statuses[int(cfg['status'])-1], 'Intended Audience :: Science/Research',
                 'Topic :: Scientific/Engineering :: Medical Science Apps.', 'Programming Language :: Python :: 3',
                 *(f'Programming Language :: Python :: {v}' for v in pythons)],
    packages=find_packages(include=['rsna_ich', 'rsna_ich.*']),
    package_data={'rsna_ich': ['bundles/*/*', 'py.typed']},
    install_requires=cfg['requirements'].split(),
    extras_require=extras,
    entry_points={'console_scripts': cfg['console_scripts'].split(), 'nbdev': ['rsna_ich=rsna_ich._modidx:d']},
    long_description=(here/'README.md').read_text(encoding='utf-8') if (here/'README.md').exists() else cfg['description'],
    long_description_content_type='text/markdown',
    zip_safe=False,
)
