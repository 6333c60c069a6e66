"""Draw a photograph as a network gets it."""

from matplotlib.figure import Figure

from ..photographs import Photograph
from .style import WIDTH, new_figure, show_photograph, styled


@styled()
def draw(photograph: Photograph, query: tuple[int, int]) -> Figure:
    """Draw a photograph at half the width of a figure, with a pixel (row, column) marked."""
    height, width = photograph.shape
    figure = new_figure(f"{photograph.name}, {width} x {height}", WIDTH / 2 * height / width + 0.4, WIDTH / 2)
    show_photograph(figure.subplots(), photograph.pixels, "", query)
    return figure
