"""Draw the maps that leave the stages of a backbone: three principal components, norms, similarity to a token."""

from collections.abc import Sequence

from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ..features import StageFeatures
from ..photographs import Photograph
from .style import colour_bar, lines_of, new_figure, show_map, show_photograph, styled


@styled()
def draw(features: Sequence[StageFeatures], photograph: Photograph, query: tuple[int, int], title: str) -> Figure:
    """Draw a line of panels for each stage.

    Norms have a scale for each stage, whose channels differ in number; all similarities have one.

    Args:
        features: Of each stage.
        photograph: That they are of.
        query: Row and column of the pixel whose token the others are compared with.
        title: Names the network and its weights.
    """
    height, width = photograph.shape
    figure = new_figure(
        f"{title}: features of {photograph.name}, {width} x {height}",
        (0.6 + 1.75 * height / width) * len(features) + 0.4,
    )
    cosines = Normalize(-1, 1)
    for part, stage in zip(lines_of(figure, [_describe(stage) for stage in features]), features, strict=True):
        panels = part.subplots(1, 4)
        rows, columns = stage.norm.shape
        token = ((query[0] + 0.5) / height * rows - 0.5, (query[1] + 0.5) / width * columns - 0.5)
        norms = Normalize(float(stage.norm.min()), float(stage.norm.max()))
        show_photograph(panels[0], photograph.pixels, "photograph", query)
        show_photograph(panels[1], stage.components, "components as RGB", token)
        show_map(panels[2], stage.norm, "norm", norms, query=token)
        show_map(panels[3], stage.similarity, "similarity to the token", cosines, query=token)
        colour_bar(part, [panels[2]], norms, "norm")
        colour_bar(part, [panels[3]], cosines, "cosine")
    return figure


def arrays(features: Sequence[StageFeatures]) -> dict[str, NDArray]:
    """Name the arrays of all stages, for the ``.npz``."""
    return {
        f"stage{stage.stage}_{name}": getattr(stage, name)
        for stage in features
        for name in ("components", "explained", "norm", "similarity")
    }


def _describe(stage: StageFeatures) -> str:
    rows, columns = stage.norm.shape
    shares = ", ".join(f"{100 * share:.0f}" for share in stage.explained)
    return (
        f"stage {stage.stage}: {columns} x {rows} tokens of {stage.channels} channels, "
        f"{shares} % of whose variance the components have"
    )
