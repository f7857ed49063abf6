"""The arguments of a preparation, and the preparation that they describe."""

from __future__ import annotations

import argparse
import os

from stoker.dataset.prepare.plan import Options
from stoker.dataset.prepare.sources import KINDS, Source, open_source
from stoker.dataset.prepare.workers import Map, on_ray, on_threads
from stoker.errors import DatasetError
from stoker.storage import locate

__all__ = ["add_arguments", "prepare_command"]

_CHECK_TIMEOUT_S = 5.0
_WORTH_A_CLUSTER_BYTES = 256 * 10**6
"""of images; below this, starting workers on other nodes (10 to 20 s) takes longer than the work"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of a preparation to ``parser``, and the kinds of source to its help."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    kinds = "\n".join(f"  {name:<12} {kind.summary}" for name, kind in sorted(KINDS.items()))
    parser.epilog = f"SOURCE is one of these kinds; --kind names it where it is not recognised:\n{kinds}"
    parser.add_argument("source", metavar="SOURCE", help="labelled images: a path, URL or torchvision://NAME?root=...")
    parser.add_argument("destination", metavar="DEST", help="path or URL to write the data set to")
    parser.add_argument("--kind", choices=sorted(KINDS), help="kind of SOURCE (default: recognised by URL or content)")
    parser.add_argument(
        "--top-folders",
        choices=("classes", "splits"),
        help="what the folders directly in a folder of images are, where their names do not tell",
    )
    parser.add_argument("--image-column", help="column of images or their paths, in Parquet or a list")
    parser.add_argument("--label-column", help="column of labels, in Parquet or a list")
    parser.add_argument("--classes", help="file with the class names of WebDataset tars, one a line")
    parser.add_argument("--copy", action="store_true", help="copy the samples of WebDataset tars into new shards")
    parser.add_argument("--validation-fraction", type=float, help="fraction of each class to hold out (default 0.2)")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the shuffle and of the held-out samples (default 0)"
    )
    parser.add_argument("--no-shuffle", action="store_true", help="keep the order of the source")
    parser.add_argument("--limit", type=int, help="use at most this many samples, at random, classes in proportion")
    parser.add_argument("--deduplicate", action="store_true", help="keep one of several byte-identical images")
    parser.add_argument("--shard-mb", type=float, default=64.0, help="target size of a shard in MB (default 64)")
    parser.add_argument("--shard-samples", type=int, help="most samples in a shard")
    parser.add_argument(
        "--on-bad", choices=("fail", "skip"), default="fail", help="what to do about invalid images (default fail)"
    )
    parser.add_argument("--no-check", action="store_true", help="check image headers only, without decoding")
    parser.add_argument(
        "--jpeg",
        choices=("marked", "original"),
        default="marked",
        help="store JPEGs with restart markers (default) or unchanged",
    )
    parser.add_argument(
        "--metadata", choices=("keep", "drop"), default="keep", help="EXIF, colour profiles and other metadata of JPEGs"
    )
    parser.add_argument(
        "--longest-side", type=int, help="scale larger images down to this many pixels and re-encode them"
    )
    parser.add_argument("--quality", type=int, default=90, help="quality of re-encoded JPEGs (default 90)")
    parser.add_argument(
        "--background",
        metavar="COLOUR",
        help="composite transparent images onto this colour: white or another name of CSS, or '#rrggbb'",
    )
    parser.add_argument("--replace", action="store_true", help="overwrite another data set at DEST")
    parser.add_argument(
        "--verify", choices=("sizes", "full"), default="sizes", help="how to verify the result (default sizes)"
    )
    parser.add_argument("--local", action="store_true", help="run on this machine, even if there is a Ray cluster")
    parser.add_argument(
        "--timeout-s", type=float, default=120.0, help="seconds for which a failing store is retried (default 120)"
    )


def prepare_command(given: argparse.Namespace) -> str:
    """Run the preparation; returns the report, whose last line is JSON.

    Raises:
        DatasetError, StorageError, ClusterError: see :func:`stoker.dataset.prepare.prepare`.
    """
    from stoker.dataset.prepare.background import colour_code
    from stoker.dataset.prepare.build import prepare  # brings torch, which ``--help`` need not wait for
    from stoker.dataset.prepare.report import report

    options = Options(
        validation_fraction=given.validation_fraction,
        seed=given.seed,
        shard_mb=given.shard_mb,
        shard_samples=given.shard_samples,
        shuffles=not given.no_shuffle,
        limit=given.limit,
        deduplicates=given.deduplicate,
        image_column=given.image_column,
        label_column=given.label_column,
        classes_file=given.classes,
        copies=given.copy,
        top_folders=given.top_folders,
        on_bad=given.on_bad,
        checks=not given.no_check,
        jpeg=given.jpeg,
        metadata=given.metadata,
        longest_side=given.longest_side,
        quality=given.quality,
        background=None if given.background is None else colour_code(given.background),
    )
    _check(options)
    source = open_source(given.source, options, kind=given.kind, timeout_s=_CHECK_TIMEOUT_S)
    source = source.with_timeout(given.timeout_s)
    prepared = prepare(
        source,
        locate(given.destination, timeout_s=given.timeout_s),
        options,
        map=_map(source, is_local=given.local),
        replaces=given.replace,
        verifies_all=given.verify == "full",
    )
    return report(prepared)


def _check(options: Options) -> None:
    fraction = options.validation_fraction
    if fraction is not None and not 0 <= fraction < 1:
        raise DatasetError(f"--validation-fraction {fraction:g}: must be at least 0 and below 1")
    if options.shard_mb <= 0:
        raise DatasetError(f"--shard-mb {options.shard_mb:g}: must be above 0")
    if options.shard_samples is not None and options.shard_samples < 1:
        raise DatasetError(f"--shard-samples {options.shard_samples}: must be at least 1")
    if options.limit is not None and options.limit < 1:
        raise DatasetError(f"--limit {options.limit}: must be at least 1")
    if options.longest_side is not None and options.longest_side < 1:
        raise DatasetError(f"--longest-side {options.longest_side}: must be at least 1 pixel")
    if not 1 <= options.quality <= 100:
        raise DatasetError(f"--quality {options.quality}: must be from 1 to 100")


def _map(source: Source, *, is_local: bool) -> Map:
    has_cluster = "RAY_ADDRESS" in os.environ or "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    return on_ray() if has_cluster and not is_local and source.bytes >= _WORTH_A_CLUSTER_BYTES else on_threads()
