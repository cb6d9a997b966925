"""The pictures: that they are drawn, and what the one of ranks says."""

import numpy as np
import pytest
from matplotlib.colors import to_hex
from test_report import reordered, result

from benchmarks import pictures
from benchmarks.pictures import bytes_plot, draw_run, heat_map, order_plot, rank_plot

PNG = b"\x89PNG"


@pytest.fixture()
def figures(monkeypatch):
    """What was drawn, still as figures."""
    drawn = []
    monkeypatch.setattr(pictures, "_save", lambda figure, path: drawn.append(figure))
    return drawn


def with_ranks(layers, tasks, **changes):
    drawn = np.random.randint(0, 40, (layers, tasks)).tolist()
    ranks = {f"body.{layer}.weight": own for layer, own in enumerate(drawn)}
    return result("cacl", ranks=ranks, **{"order": list(range(tasks)), **changes})


def curves(axes):
    return {tuple(line.get_ydata()) for line in axes.get_lines()}


@pytest.mark.parametrize("draw", [heat_map, lambda run, path: bytes_plot([run, run], path)])
def test_pictures_are_written_as_png(draw, tmp_path):
    draw(result(), tmp_path / "new" / "picture.png")
    assert (tmp_path / "new" / "picture.png").read_bytes().startswith(PNG)


def test_bytes_plot_takes_streams_seeds_and_many_strategies(tmp_path):
    runs = [result(f"method {i}", seed=s, stored_bytes=10**i) for i in range(3, 8) for s in (0, 1)]
    runs.append(result(stream="split_mnist"))
    bytes_plot(runs, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(PNG)


def test_the_picture_of_orders_takes_streams_seeds_and_strategies_of_one_order(tmp_path):
    runs = [
        make(f"method {number}", seed=seed)
        for number in range(5)
        for seed in (0, 1)
        for make in (result, reordered)
    ]
    runs += [result("once"), reordered(stream="split_mnist"), result(stream="split_mnist")]
    order_plot(runs, tmp_path / "orders.png")
    assert (tmp_path / "orders.png").read_bytes().startswith(PNG)


@pytest.mark.parametrize(("layers", "tasks"), [(1, 1), (5, 20), (20, 10), (3, 50)])
def test_ranks_of_any_number_of_layers_and_tasks_are_written_as_png(layers, tasks, tmp_path):
    rank_plot(with_ranks(layers, tasks), tmp_path / "new" / "ranks.png")
    assert (tmp_path / "new" / "ranks.png").read_bytes().startswith(PNG)


def test_ranks_have_a_curve_per_layer_and_add_up_over_the_tasks(figures, tmp_path):
    run = with_ranks(4, 6)
    rank_plot(run, tmp_path / "ranks.png")
    own, total = figures[0].axes
    assert curves(own) == {tuple(ranks) for ranks in run.ranks.values()}
    assert curves(total) == {tuple(np.cumsum(ranks)) for ranks in run.ranks.values()}
    assert figures[0].texts[0].get_text() == "cacl on split_digits, seed 0"


def test_few_layers_are_named_with_their_total_and_many_have_a_colour_bar(figures, tmp_path):
    few, many = with_ranks(3, 4), with_ranks(20, 10)
    rank_plot(few, tmp_path / "few.png")
    rank_plot(many, tmp_path / "many.png")
    said = [text.get_text() for text in figures[0].axes[1].texts]
    assert said == [f"body.{layer}  {sum(few.ranks[f'body.{layer}.weight'])}" for layer in range(3)]
    own, _, bar = figures[1].axes
    assert [text.get_text() for text in bar.get_yticklabels()][::5] == ["body.0", "body.19"]
    assert len({to_hex(line.get_color()) for line in own.get_lines()}) == 20


def test_names_stay_in_the_panel_and_apart_when_all_layers_end_alike(figures, tmp_path):
    ranks = {f"body.{layer}.weight": [7, 0] for layer in range(8)}
    rank_plot(result("cacl", ranks=ranks), tmp_path / "ranks.png")
    heights = sorted(text.xyann[1] for text in figures[0].axes[1].texts)
    assert np.diff(heights).min() > 0.069
    assert heights[0] >= 0 and heights[-1] <= 1


def test_ticks_are_tasks_in_the_order_they_were_learned(figures, tmp_path):
    rank_plot(with_ranks(2, 4, order=[2, 0, 3, 1]), tmp_path / "ranks.png")
    for axes in figures[0].axes:
        assert [text.get_text() for text in axes.get_xticklabels()] == ["3", "1", "4", "2"]


def test_only_runs_with_ranks_have_a_picture_of_them(tmp_path):
    draw_run(result(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["matrix-split_digits-naive-seed0.png"]
    draw_run(with_ranks(2, 2), tmp_path)
    assert (tmp_path / "ranks-split_digits-cacl-seed0.png").exists()
    with pytest.raises(ValueError, match="naive on split_digits, seed 0 keeps no weights"):
        rank_plot(result(), tmp_path / "none.png")
