"Package metadata from settings.ini, version from rsna_ich/__init__.py (pyproject.toml names what is dynamic)"
import re
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_namespace_packages, setup

here = Path(__file__).parent
readme = here/'README.md'
config = ConfigParser(delimiters=['='])
config.read(here/'settings.ini', encoding='utf-8')
cfg = config['DEFAULT']
version = re.search(r'^__version__ = "([^"]+)"', (here/'rsna_ich/__init__.py').read_text(encoding='utf-8'), re.M)[1]
statuses = ['1 - Planning', '2 - Pre-Alpha', '3 - Alpha', '4 - Beta', '5 - Production/Stable']
pythons = ['3.11', '3.12', '3.13']
repository = 'https://github.com/rsna-ich/rsna_ich'
# The bundles and the pages' files are folders of data; named as packages, they are put into the wheel without a warning
packages = find_namespace_packages(include=['rsna_ich', 'rsna_ich.*'], exclude=['*.__pycache__', '*.__pycache__.*'])
bundles = {name: ['*'] for name in packages if name.startswith(('rsna_ich.bundles.', 'rsna_ich.apps.static'))}


def for_the_index(text):
    "README.md with links that work outside the repository: pictures at their bytes, files at their pages"
    pictures = re.sub(r'(!\[[^]]*\]\()(?!https?:)', rf'\1{repository}/raw/main/', text)
    return re.sub(r'(?<!!)(\[[^]]*\]\()(?!https?:|mailto:|#)', rf'\1{repository}/blob/main/', pictures)


extras = {key.removesuffix('_requirements'): cfg[key].split() for key in cfg if key.endswith('_requirements')}

setup(
    version=version,
    license='Apache-2.0',
    author=cfg['author'],
    keywords=cfg['keywords'].split(),
    classifiers=['Development Status :: ' + statuses[int(cfg['status'])-1], 'Intended Audience :: Science/Research',
                 'Topic :: Scientific/Engineering :: Medical Science Apps.', 'Programming Language :: Python :: 3',
                 *(f'Programming Language :: Python :: {v}' for v in pythons)],
    packages=packages,
    package_data={'rsna_ich': ['py.typed'], **bundles},
    install_requires=cfg['requirements'].split(),
    extras_require=extras,
    entry_points={'console_scripts': cfg['console_scripts'].split(), 'nbdev': ['rsna_ich=rsna_ich._modidx:d']},
    long_description=for_the_index(readme.read_text(encoding='utf-8')) if readme.exists() else cfg['description'],
    long_description_content_type='text/markdown',
    zip_safe=False,
)
