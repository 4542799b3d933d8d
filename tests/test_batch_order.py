import numpy as np
import pytest

from processing.batches.batch_order import WINDOW_GROUPS, BatchOrder


ROW_GROUPS = [7, 1, 12, 12, 0, 5, 12, 12, 12, 3, 12, 9]  # 97 studies
SHAPES = [(97, 8, 1, 1), (97, 4, 2, 1), (97, 3, 3, 2), (96, 8, 2, 3), (97, 97, 1, 1), (98, 5, 4, 2)]


def make_order(num_studies=97, batch_size=4, seed=3, **arguments):
    return BatchOrder(num_studies, batch_size, seed, **arguments)


def epoch_of(epoch=0, batch=0, **arguments):
    order = make_order(**arguments)
    order.set_place(epoch, batch)
    return list(order)


def make_groups(num_studies):
    return [*ROW_GROUPS[:-1], ROW_GROUPS[-1] + num_studies - sum(ROW_GROUPS)]


@pytest.mark.parametrize("num_studies, batch_size, num_processes, batches_per_step", SHAPES)
@pytest.mark.parametrize("num_workers", [None, 0, 1, 2, 5])
def test_no_study_comes_twice_and_all_processes_have_equally_many_full_batches(
    num_studies, batch_size, num_processes, batches_per_step, num_workers
):
    streamed = {} if num_workers is None else {"row_groups": make_groups(num_studies), "num_workers": num_workers}
    shape = {"batch_size": batch_size, "num_processes": num_processes, "batches_per_step": batches_per_step}
    arguments = streamed | shape | {"num_studies": num_studies}
    processes = [epoch_of(process_index=index, **arguments) for index in range(num_processes)]
    expected = num_studies // (batch_size * num_processes * batches_per_step) * batches_per_step
    assert [len(batches) for batches in processes] == [expected] * num_processes
    assert len(make_order(**arguments)) == expected
    assert {len(batch) for batches in processes for batch in batches} == {batch_size}
    studies = [study for batches in processes for batch in batches for study in batch]
    assert len(set(studies)) == len(studies) and set(studies) <= set(range(num_studies))


@pytest.mark.parametrize("streamed", [{}, *({"row_groups": ROW_GROUPS, "num_workers": n} for n in (0, 1, 2, 3, 7))])
def test_an_epoch_goes_on_from_any_batch_as_if_never_stopped(streamed):
    whole = epoch_of(2, **streamed)
    for batch in range(len(whole) + 1):
        assert epoch_of(2, batch, **streamed) == whole[batch:]


@pytest.mark.parametrize("streamed", [{}, {"row_groups": ROW_GROUPS, "num_workers": 2}])
def test_epochs_and_seeds_differ_in_order_and_in_what_is_dropped(streamed):
    epochs = [epoch_of(epoch, **streamed) for epoch in range(8)] + [epoch_of(seed=4, **streamed)]
    assert len({str(batches) for batches in epochs}) == 9
    dropped = [set(range(97)) - {study for batch in batches for study in batch} for batches in epochs]
    assert len(dropped[0]) == 1 and len(set().union(*dropped)) > 3
    assert epoch_of(5, **streamed) == epochs[5]


def test_the_rest_of_a_single_row_group_differs_too():
    epochs = [epoch_of(epoch, num_studies=25, batch_size=8, row_groups=[25]) for epoch in range(12)]
    assert len({min(set(range(25)) - set(sum(batches, []))) for batches in epochs}) > 3


@pytest.mark.parametrize("num_processes", [2, 4])
def test_a_step_sees_the_same_studies_however_it_is_split(num_processes):
    whole = epoch_of(1, batch_size=8)
    shape = {"batch_size": 8 // num_processes, "num_processes": num_processes}
    parts = [epoch_of(1, process_index=index, **shape) for index in range(num_processes)]
    assert [sum(batches, []) for batches in zip(*parts, strict=True)] == whole
    accumulated = epoch_of(1, batch_size=2, batches_per_step=4)
    assert [sum(accumulated[k : k + 4], []) for k in range(0, len(accumulated), 4)] == whole


@pytest.mark.parametrize("first_batch", [0, 1, 6])
def test_a_worker_reads_each_row_group_once_but_at_the_ends_of_its_range(first_batch):
    row_groups, num_workers = [64] * 40 + [17], 3
    arguments = {"num_studies": sum(row_groups), "batch_size": 10, "num_processes": 2, "num_workers": num_workers}
    ends, reads = np.cumsum(row_groups), 0
    for index in range(2):
        batches = epoch_of(1, first_batch, process_index=index, row_groups=row_groups, **arguments)
        for worker in range(num_workers):
            kept = []
            for study in sum(batches[worker::num_workers], []):
                group = int(np.searchsorted(ends, study, side="right"))
                reads += group not in kept
                kept = [*(other for other in kept if other != group), group][-WINDOW_GROUPS:]
    assert reads <= len(row_groups) + 2 * num_workers - 1


def test_studies_of_a_batch_come_from_several_row_groups():
    row_groups = [64] * 40
    batches = epoch_of(num_studies=sum(row_groups), batch_size=24, row_groups=row_groups, num_workers=2)
    assert np.mean([len({study // 64 for study in batch}) for batch in batches]) > 3


def test_arguments_out_of_range_are_errors():
    for name in ("batch_size", "num_processes", "batches_per_step"):
        with pytest.raises(ValueError, match=f"`{name}` must be at least 1, got 0"):
            make_order(**{name: 0})
    with pytest.raises(ValueError, match="`seed` must be at least 0, got -1"):
        make_order(seed=-1)
    with pytest.raises(ValueError, match="`process_index` must be below `num_processes` 2, got 2"):
        make_order(num_processes=2, process_index=2)
    with pytest.raises(ValueError, match="`row_groups` must add up to `num_studies` 97, got 64"):
        make_order(row_groups=[32, 32])
    with pytest.raises(ValueError, match="`num_studies` must be at least the 100 of an optimizer step, got 97"):
        make_order(batch_size=50, num_processes=2)
    with pytest.raises(ValueError, match=r"`batch` in 0..24, got epoch 0 and batch 25"):
        make_order().set_place(0, 25)
