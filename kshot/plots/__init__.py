"""Plots: scores, episodes, fitted curves, functions with their bands, completed images.

    plot_steps(results, "steps.png")                      # results of `kshot.scoring.evaluate`
    draw_episode(learner, task, "episode.png", ink=True)  # one task, for instance tree.index(tasks.sample(g, 1), 0)

matplotlib is imported when a plot is made and no sooner; no window system is needed and pyplot's global state is
left alone. A plot is written beside its place and then moved there. The format follows the name (.png, .svg, .pdf).
"""

from kshot.plots.functions import plot_completion, plot_function
from kshot.plots.scores import draw_episode, plot_context, plot_learning, plot_shots, plot_sinusoid, plot_steps

__all__ = [
    "draw_episode",
    "plot_completion",
    "plot_context",
    "plot_function",
    "plot_learning",
    "plot_shots",
    "plot_sinusoid",
    "plot_steps",
]
