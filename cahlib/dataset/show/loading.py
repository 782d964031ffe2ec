"""Code that loads a dataset, for its card, to be run in the dataset's folder."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cahlib.dataset.layout import ONE_EXTENSION, tar_number
from cahlib.dataset.show.summary import Summary

_METADATA = """\
```python
import pandas
table = pandas.read_parquet("metadata")  # URL, TEXT, similarity and more, a row a pair
```

```python
from datasets import load_dataset
print(load_dataset("parquet", data_files="metadata/*.parquet", split="train"))  # the same
```
"""

_IMAGES = """\
```python
import %(glob)swebdataset
samples = webdataset.WebDataset(%(tars)s, shardshuffle=False)
%(kinds)sfor sample in samples.decode(webdataset.imagehandler("pil", %(named)s)):
    image = %(image)s
    print(sample["__key__"], image.size, sample["txt"], sample["json"]["similarity"])
```

```python
from datasets import load_dataset
%(kinds)sfor sample in load_dataset("./images", split="train", streaming=True):
    image = %(picked)s
    print(sample["__key__"], image.size, sample["txt"], sample["json"]["similarity"])
```

```bash
# open_clip takes the number of samples from images/sizes.json%(lacking)s
python -m open_clip_train.main --dataset-type webdataset --train-data "%(shell)s" \\
    --model ViT-B-32 --batch-size 64 --workers 2 --epochs 1
```
"""

_EMBEDDINGS = """\
```python
from embedding_reader import EmbeddingReader
reader = EmbeddingReader(
    "img_emb", metadata_folder="metadata", meta_columns=["uid", "TEXT"], file_format="parquet_npy"
)
for vectors, rows in reader(batch_size=1000):
    print(vectors.shape, rows["TEXT"][0])
```

```bash
# makes it searchable, and serves the search at port 1234
clip-retrieval index --embeddings_folder . --index_folder index
%(back)s```
"""

#: Loads the model too, which must be one that open_clip lists.
_BACK = """\
echo '{"dataset": "index"}' > indices_paths.json
clip-retrieval back --indices_paths indices_paths.json --clip_model %(model)s \\
    --columns_to_return '["URL", "TEXT", "NSFW", "similarity"]' --url_column URL \\
    --use_jit False --enable_mclip_option False --provide_aesthetic_embeddings False
"""

_TFRECORDS = """\
```python
import glob, tensorflow as tf
records = tf.data.TFRecordDataset(sorted(glob.glob("tfrecords/*.tfrecord")))
text, number = tf.io.FixedLenFeature([], tf.string), tf.io.FixedLenFeature([], tf.int64)
kinds = dict.fromkeys(["sampleID", "image", "format", "label"], text)
kinds |= dict.fromkeys(["height", "width"], number)
for record in records:
    print(tf.io.parse_single_example(record, kinds)["label"].numpy().decode())
```
"""


def loading_examples(found: Summary, job_values: Mapping[str, Any]) -> Iterator[str]:
    """Yield the code for each form that a dataset has."""
    yield _METADATA
    for form in found.forms:
        if form.startswith("images"):
            yield _images(found, form)
        elif form == "embeddings":
            yield _EMBEDDINGS % {"back": _back(found, job_values)}
        else:
            yield _TFRECORDS


def _images(found: Summary, form: str) -> str:
    tars, shell = _tars(found)
    values = {"tars": tars, "shell": shell, "glob": "glob, " if "glob" in tars else ""}
    if form == ONE_EXTENSION:
        same = {"kinds": "", "named": '["jpg"]', "image": 'sample["jpg"]', "lacking": ""}
        return _IMAGES % (values | same | {"picked": same["image"]})
    return _IMAGES % (
        values
        | {
            "kinds": 'kinds = ["jpg", "png", "webp", "avif"]\n',
            "named": "kinds",
            "image": "next(sample[kind] for kind in kinds if kind in sample)",
            "picked": "next(sample[kind] for kind in kinds if sample.get(kind))",
            "lacking": ", and reads no avif",
        }
    )


def _tars(found: Summary) -> tuple[str, str]:
    """Return expressions for all tars, in Python and in a shell."""
    numbers = sorted(n for name in found.tars if (n := tar_number(f"images/{name}")) is not None)
    if len(numbers) > 1 and numbers == [*range(len(found.tars))]:
        braces = f"images/{{00000..{numbers[-1]:05}}}.tar"
        return f'"{braces}"', braces
    listed = "$(printf '::%s' images/*.tar | cut -c3-)"  # several paths, as open_clip reads them
    return 'sorted(glob.glob("images/*.tar"))', listed


def _back(found: Summary, job_values: Mapping[str, Any]) -> str:
    """Return how to serve the search, which clip-retrieval cannot with a model in files."""
    name = found.models[0][0] if found.models else ""
    model, weights = (str(job_values.get(each, "")) for each in ("model", "pretrained"))
    in_files = (model and Path(model).is_dir()) or Path(weights).suffix
    if in_files or not re.fullmatch(r"[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+", name):
        return "# serving the search needs a model that open_clip lists, unlike this dataset's\n"
    return _BACK % {"model": f"open_clip:{name}"}
