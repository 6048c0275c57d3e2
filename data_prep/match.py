"""Tests two images as mining would, and says why they would be kept as a pair, or why not.

python -m data_prep.match VIEW1 VIEW2 --output=match.png
"""

import dataclasses
from pathlib import Path

from absl import flags
from jaxtyping import UInt8
from numpy import ndarray
from rich.console import Console
from rich.table import Table

from data_prep import matching
from data_prep.inspect import plain
from data_prep.matching import Match, Reason
from data_prep.mining import judge
from data_prep.settings import Settings
from data_prep.sources.images import ImageProblem, read_image
from mimic_jax import command, files
from mimic_jax.command import InputError
from mimic_jax.viz import pictures


@dataclasses.dataclass(frozen=True, eq=False)
class Finding:
    """How two views did in the pair test.

    keypoints: of view1 and of view2.
    matches: of them that pass the ratio test, and where the matcher asks for it, are mutual.
    match: None where there is no homography.
    reason: why the pair would not be kept; None where it would.
    """

    keypoints: tuple[int, int]
    matches: int
    match: Match | None
    reason: Reason | None


def examine(
    image1: UInt8[ndarray, "height1 width1 3"], image2: UInt8[ndarray, "height2 width2 3"], settings: Settings
) -> Finding:
    """The pair test on two RGB images of any size, with all that it found on the way."""
    features1, features2 = (
        matching.detect(matching.resize(image, settings.image_size), settings.matcher) for image in (image1, image2)
    )
    points, _ = matching.ratio_test(features1, features2, settings.matcher)
    found = matching.match_features(
        features1,
        features2,
        image_size=settings.image_size,
        patch_size=settings.patch_size,
        matcher=settings.matcher,
    )
    keypoints = len(features1.points), len(features2.points)
    if isinstance(found, Reason):
        return Finding(keypoints, len(points), None, found)
    return Finding(keypoints, len(points), found, judge(found.overlap, settings))


def draw(
    image1: UInt8[ndarray, "height1 width1 3"],
    image2: UInt8[ndarray, "height2 width2 3"],
    finding: Finding,
    settings: Settings,
) -> pictures.Picture:
    """The two views as they are tested, and where there is a homography, below them each matched patch in the colour
    that it has in both."""
    factor = max(1, 448 // settings.image_size)
    views = [pictures.enlarge(matching.resize(image, settings.image_size), factor) for image in (image1, image2)]
    rows = [views]
    if finding.match is not None:
        rows.append(pictures.tint_matches(*views, finding.match.correspondence))
    return pictures.grid(rows, ["view 1", "view 2"])


def verdict(finding: Finding, settings: Settings) -> str:
    """Whether the pair would be kept, and why, in one sentence."""
    band = f"{100 * settings.min_overlap:g}–{100 * settings.max_overlap:g} %"
    match finding.reason:
        case None:
            return f"kept: the overlap is inside the band of {band}"
        case Reason.TOO_FEW_MATCHES:
            why = f"{finding.matches} matches, and more than {matching.MIN_MATCHES} are needed: other places, blur, "
            why += "or too little to hold on to"
        case Reason.NO_HOMOGRAPHY:
            why = f"no homography that more than chance speaks for, among {finding.matches} matches"
        case Reason.BELOW_BAND:
            why = f"the views share too little: the overlap is below the band of {band}"
        case _:
            why = f"the views are too much alike: the overlap is above the band of {band}"
    return f"not kept ({finding.reason.value}): {why}"


def _table(paths: tuple[str, str], finding: Finding, settings: Settings) -> Table:
    table = Table(show_header=False)
    for number, (path, keypoints) in enumerate(zip(paths, finding.keypoints, strict=True), start=1):
        table.add_row(f"keypoints of view {number}", f"{keypoints}  ({plain(path)})")
    way = matching.MATCHERS[settings.matcher]
    mutual = " and are nearest both ways" if way.mutual else ""
    table.add_row("matches", f"{finding.matches} pass the ratio test of {way.ratio:g}{mutual}")
    if finding.match is not None:
        table.add_row("inliers", f"{finding.match.inliers} within {way.threshold:g} pixels of the homography")
        matched = round(finding.match.overlap * settings.patches)
        table.add_row("overlap", f"{finding.match.overlap:.1%}: {matched} of {settings.patches} patches")
    return table


def define_flags() -> None:
    """The command's flags; not defined on import, so that other commands can use this module."""
    flags.DEFINE_string("output", None, "A picture of the matched patches (PNG); none where it is not named.")
    flags.DEFINE_integer("image_size", Settings.image_size, "Views are resized to this many pixels a side.")
    flags.DEFINE_integer("patch_size", Settings.patch_size, "Pixels a side of a patch.")
    flags.DEFINE_float("min_overlap", Settings.min_overlap, "Least overlap of a kept pair, 0 to 1.")
    flags.DEFINE_float("max_overlap", Settings.max_overlap, "Greatest overlap of a kept pair, 0 to 1.")
    flags.DEFINE_enum("matcher", Settings.matcher, list(matching.MATCHERS), "How the views are matched.")


def main(view1: str, view2: str) -> None:
    """Runs the command."""
    names = ("image_size", "patch_size", "min_overlap", "max_overlap", "matcher")
    settings = Settings("match", **{name: getattr(flags.FLAGS, name) for name in names})
    if flags.FLAGS.output and not flags.FLAGS.output.lower().endswith(".png"):
        raise InputError(f"--output={flags.FLAGS.output}: the picture is a PNG; give it a name that ends in .png")
    images = []
    for view in (view1, view2):
        try:
            images.append(read_image(files.as_path(view)))
        except ImageProblem as problem:
            raise InputError(f"{view}: {problem}; an image file is needed (JPEG, PNG, …)") from problem
    finding = examine(*images, settings)
    console = Console(markup=False, highlight=False, emoji=False, soft_wrap=True)
    console.print(_table((view1, view2), finding, settings))
    console.print(verdict(finding, settings))
    if flags.FLAGS.output:
        pictures.save(draw(*images, finding, settings), Path(flags.FLAGS.output))
        console.print(f"picture: {plain(flags.FLAGS.output)}")


if __name__ == "__main__":
    define_flags()
    command.run(main, positional=("VIEW1", "VIEW2"))
