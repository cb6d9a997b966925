"""The pictures: that they are drawn, and what those of curves say."""

from xml.etree import ElementTree

import numpy as np
import pytest
from benchmarks_for_tests import make_result, reordered
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from benchmarks.report.drawing import FEW_LAYERS, save, styles_of, svg_of
from benchmarks.report.groups import groups_of, groups_with, layer_means
from benchmarks.report.layer_pictures import layer_figure, rank_figure
from benchmarks.report.pictures import (
    PICTURES,
    bytes_figure,
    curve_figure,
    draw_comparison,
    draw_run,
    heat_map,
    matrix_figure,
)
from benchmarks.runs.strategies import STRATEGIES

PNG = b"\x89PNG"


def with_ranks(layers, tasks, **changes):
    drawn = np.random.randint(0, 40, (layers, tasks)).tolist()
    ranks = {f"body.{layer}.weight": row for layer, row in enumerate(drawn)}
    return make_result("cacl", ranks=ranks, **{"order": list(range(tasks)), **changes})


def curves(axes):
    return {tuple(line.get_ydata()) for line in axes.get_lines()}


def joint(**changes):
    """A run that learned all tasks at once."""
    matrix = [[None, None], [0.99, 0.97]]
    return make_result(
        "joint", accuracy=0.98, accuracy_matrix=matrix, forgetting=None, bwt=None, **changes
    )


def many_runs():
    """Two streams and scenarios, with several seeds and orders, and strategies of one order."""
    layers = {
        "ranks": {"body.1.weight": [4, 1]},
        "densities": {"body.1.weight": [0.5, 0.25]},
        "bits": {"body.1.weight": [8.0, None]},
    }
    runs = [
        make(f"method {number}", seed=seed, stored_bytes=10 ** (3 + number), **layers)
        for number in range(5)
        for seed in (0, 1)
        for make in (make_result, reordered)
    ]
    runs += [
        make_result("once"),
        joint(),
        reordered(stream="split_mnist"),
        make_result(stream="split_mnist"),
    ]
    return [
        *runs,
        make_result("wsn", scenario="class", task_inference="energy", task_id_accuracy=0.5),
    ]


def points(axes):
    """By label, the (x, y) of each line with error bars."""
    return {
        bars.get_label().split("  ")[0]: list(zip(*bars.lines[0].get_data()))
        for bars in axes.containers
    }


def test_a_picture_is_written_as_png_and_the_same_as_svg_every_time(tmp_path):
    save(heat_map(make_result()), tmp_path / "new" / "picture.png")
    assert (tmp_path / "new" / "picture.png").read_bytes().startswith(PNG)
    written = (tmp_path / "new" / "picture.svg").read_text(encoding="utf-8")
    assert ElementTree.fromstring(written).tag.endswith("svg")
    assert svg_of(heat_map(make_result())) == written


def test_a_picture_is_drawn_once_for_each_of_its_files(tmp_path, monkeypatch):
    draw, drawn = Figure.draw, []

    def counted(figure, renderer):
        drawn.append(figure)
        draw(figure, renderer)

    monkeypatch.setattr(Figure, "draw", counted)
    save(heat_map(make_result()), tmp_path / "picture.png")
    assert len(drawn) == 2


def test_every_picture_takes_streams_scenarios_seeds_orders_and_many_strategies(tmp_path):
    draw_comparison(many_runs(), tmp_path)
    expected = {f"{picture.name}.{form}" for picture in PICTURES for form in ("png", "svg")}
    assert {path.name for path in tmp_path.iterdir()} == expected


def test_pictures_without_anything_to_show_are_not_drawn(tmp_path):
    draw_comparison([make_result()], tmp_path)
    always = {"accuracy_over_tasks", "accuracy_matrices", "accuracy_against_bytes"}
    assert {path.stem for path in tmp_path.iterdir()} == always


def test_registered_strategies_look_different_and_always_the_same():
    everybody = styles_of(groups_of(make_result(name) for name in STRATEGIES))
    assert len(set(everybody.values())) == len(STRATEGIES)
    assert styles_of(groups_of([make_result("wsn")]))["wsn"] == everybody["wsn"]
    rules = [
        make_result("wsn", task_inference=rule) for rule in ("energy", "entropy", "energy_batch")
    ]
    styles = styles_of(groups_of([make_result("new"), *rules]))
    assert len(set(styles.values())) == 4
    assert {styles[f"wsn, {rule}"][0] for rule in ("energy", "entropy")} == {everybody["wsn"][0]}


def test_a_curve_is_the_mean_over_the_tasks_seen_and_the_runs():
    runs = [make_result(), make_result(seed=1, accuracy_matrix=[[0.75, None], [0.5, 0.9]]), joint()]
    (axes,) = curve_figure(groups_of(runs)).axes
    naive, together = (np.array(points(axes)[name]) for name in ("naive", "joint"))
    assert naive[:, 1] == pytest.approx([85, 80])
    assert np.isnan(together[0, 1])
    assert together[1, 1] == pytest.approx(98)
    assert len({*naive[:, 0], *together[:, 0]}) == 4
    assert np.round([*naive[:, 0], *together[:, 0]]).tolist() == [1, 2, 1, 2]


def test_the_front_goes_along_the_best_that_learned_task_by_task():
    sizes = {"a": (1000, 0.8), "b": (2000, 0.7), "c": (4000, 0.9)}
    runs = [make_result(n, stored_bytes=size, accuracy=a) for n, (size, a) in sizes.items()]
    (axes,) = bytes_figure(groups_of([*runs, joint(stored_bytes=10)])).axes
    (front,) = [line for line in axes.get_lines() if line.get_label() == "Pareto front"]
    assert list(zip(*front.get_data())) == [(1000, 80), (4000, 90)]
    assert set(points(axes)) == {"a", "b", "c", "joint"}


@pytest.mark.parametrize("accuracies", [(0.4, 0.95, 0.97), (0.962, 0.963, 0.964), (0.99, 1.0, 1.0)])
def test_accuracies_near_100_lie_apart_as_their_errors_do(accuracies):
    runs = [make_result(name, accuracy=a) for name, a in zip("abc", accuracies)]
    figure = bytes_figure(groups_of(runs))
    (axes,) = figure.axes
    figure.canvas.draw()
    low, high = axes.get_ylim()
    assert low < 100 * accuracies[0]
    assert 100 * accuracies[2] < high < 100.5
    assert sum(low <= tick <= high for tick in axes.get_yticks()) >= 3
    heights = axes.transData.transform([(1, 100 * a) for a in accuracies])[:, 1]
    assert np.diff(heights)[0] > 0
    assert heights[1] <= heights[2]
    errors = np.log([100.5 - 100 * a for a in accuracies])
    if accuracies[1] < accuracies[2]:
        ratio = np.diff(heights)[1] / np.diff(heights)[0]
        assert ratio == pytest.approx(np.diff(errors)[1] / np.diff(errors)[0])


def test_small_matrices_are_means_over_the_seeds_of_the_first_order():
    runs = [
        reordered(),
        make_result(),
        make_result(seed=1, accuracy_matrix=[[0.85, None], [0.7, 0.5]]),
    ]
    panel, _ = matrix_figure(groups_of(runs)).axes
    assert [text.get_text() for text in panel.texts] == ["90.0", "80.0", "70.0"]


def test_layers_have_the_mean_over_runs_and_nothing_where_no_task_added_anything():
    runs = [
        make_result("cacl", bits={"a.weight": [8.0, None, None], "b.weight": [4.0, 4.0, 2.0]}),
        make_result(
            "cacl", seed=1, bits={"a.weight": [4.0, 3.0, None], "b.weight": [4.0, 2.0, 2.0]}
        ),
    ]
    means = layer_means(runs, "bits")
    assert means["a"] == pytest.approx([6, 3, np.nan], nan_ok=True)
    assert means["b"] == pytest.approx([4, 3, 2])
    panel, *_ = layer_figure(groups_with([*runs, make_result()], "bits"), "bits").axes
    drawn = [line.get_ydata() for line in panel.get_lines()]
    assert drawn == [pytest.approx(mean, nan_ok=True) for mean in means.values()]
    assert panel.get_title(loc="left") == "cacl"


@pytest.mark.parametrize("layers", [1, FEW_LAYERS, FEW_LAYERS + 1])
def test_few_layers_have_a_legend_and_many_a_colour_bar(layers):
    densities = {f"body.{layer}.weight": [0.5, 0.25] for layer in range(layers)}
    figure = layer_figure(groups_of([make_result("wsn", densities=densities)]), "densities")
    assert len(figure.axes) == (2 if layers > FEW_LAYERS else 1)
    assert len(figure.subfigs[0].legends) == (0 if layers > FEW_LAYERS else 1)
    assert {tuple(line.get_ydata()) for line in figure.axes[0].get_lines()} == {(50, 25)}


@pytest.mark.parametrize(("layers", "tasks"), [(1, 1), (5, 20), (20, 10), (3, 50)])
def test_ranks_of_any_number_of_layers_and_tasks_are_drawn(layers, tasks):
    assert svg_of(rank_figure(with_ranks(layers, tasks)))


def test_ranks_have_a_curve_per_layer_and_add_up_over_the_tasks():
    run = with_ranks(4, 6)
    figure = rank_figure(run)
    added, total = figure.axes
    assert curves(added) == {tuple(ranks) for ranks in run.ranks.values()}
    assert curves(total) == {tuple(np.cumsum(ranks)) for ranks in run.ranks.values()}
    assert figure.texts[0].get_text() == "cacl on split_digits, seed 0"


def test_few_layers_are_named_with_their_total_and_many_have_a_colour_bar():
    few, many = with_ranks(3, 4), with_ranks(20, 10)
    said = [text.get_text() for text in rank_figure(few).axes[1].texts]
    assert said == [f"body.{layer}  {sum(few.ranks[f'body.{layer}.weight'])}" for layer in range(3)]
    added, _, bar = rank_figure(many).axes
    assert [text.get_text() for text in bar.get_yticklabels()][::5] == ["body.0", "body.19"]
    assert len({to_hex(line.get_color()) for line in added.get_lines()}) == 20


def test_names_stay_in_the_panel_and_apart_when_all_layers_end_alike():
    ranks = {f"body.{layer}.weight": [7, 0] for layer in range(8)}
    figure = rank_figure(make_result("cacl", ranks=ranks))
    heights = sorted(text.xyann[1] for text in figure.axes[1].texts)
    assert np.diff(heights).min() > 0.069
    assert heights[0] >= 0
    assert heights[-1] <= 1


def test_ticks_are_tasks_in_the_order_they_were_learned():
    for axes in rank_figure(with_ranks(2, 4, order=[2, 0, 3, 1])).axes:
        assert [text.get_text() for text in axes.get_xticklabels()] == ["3", "1", "4", "2"]


def test_only_runs_with_ranks_have_a_picture_of_them(tmp_path):
    draw_run(make_result(), tmp_path)
    assert {path.stem for path in tmp_path.iterdir()} == {"matrix-split_digits-naive-seed0"}
    draw_run(with_ranks(2, 2), tmp_path)
    assert (tmp_path / "ranks-split_digits-cacl-seed0.png").exists()
    with pytest.raises(ValueError, match="naive on split_digits, seed 0 keeps no weights"):
        rank_figure(make_result())
