"""A stream gives a student what memory would: the same rows, as few at a time as there is room for."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import threading
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from benchmarks.stand_ins.kept_as import keep_as
from ground.errors import Interrupted, InvalidInput, OlderFormat, StoreUnreadable
from ground.ranks import Ranks
from models.compute import Compute
from storage.answers import AnswerForm, empty_answers, is_empty
from storage.arrays import ArrayFile
from storage.migrations import OlderManifest
from storage.rows import Rows
from storage.run_record import RunRecord
from storage.schema import DIGEST
from storage.store import Store
from student_train import request, streamed_data
from student_train.anchor import anchor
from student_train.cli import main
from student_train.data import StudentData
from student_train.methods import parse_method
from student_train.needs import Wanted
from student_train.protocol import ProtocolConfig
from student_train.request import Request
from student_train.run_folder import RunFolder
from student_train.sampling import EpochSampling
from student_train.shared_data import SharedData
from student_train.stream_order import Visits
from student_train.streamed_data import Streaming, block_rows, load_data, rows_with_content
from student_train.train_config import TrainConfig
from student_train.trainer import Trainer
from tests.rank_threads import in_ranks
from tests.student_train.test_read_ahead import reading_threads
from tests.student_train.test_trainer import assert_same_run

CPU = Compute(torch.device("cpu"), "fp32")
LOGITS = Wanted(student=(), teacher=("logits",), parameters=False)
MAPS = replace(LOGITS, teacher=("layer2", "logits"))
STREAM = Streaming(always=True, rows=24)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks of eight rows, so that a store of 96 has several."""
    monkeypatch.setattr(streamed_data, "block_rows", lambda store: 8)


def stream_of(store, n: int | None = None, wanted: Wanted = MAPS, streaming: Streaming = STREAM) -> StudentData:
    return load_data(Store.open(store), n, wanted, CPU, None, streaming)


def trainer_of(store, out, method: str = "kd", load=load_data, **settings) -> Trainer:
    protocol = ProtocolConfig(max_evals=settings.pop("max_evals", 2))
    given = {"student": "resnet8", "batch_size": 16, "stream_rows": 24, "protocol": protocol} | settings
    return Trainer.open(TrainConfig(**given), store, None, parse_method(method), CPU, RunFolder(out), load=load)


def little_memory(monkeypatch, free: float = 1e5) -> None:
    for module in (request, streamed_data):
        monkeypatch.setattr(module, "free_main_memory", lambda: free)


# What a batch holds


def test_batches_of_a_stream_are_what_memory_would_give(store_of_each_format):
    whole = StudentData.load(Store.open(store_of_each_format), 90, MAPS, CPU)
    streamed = stream_of(store_of_each_format, 90)
    sampling, options = streamed.drawn_by(EpochSampling()), {"labels": whole.train.labels, "batch_size": 16}
    seen = []
    for step in range(12):
        batch = sampling.batch(step, seed=3, **options)
        for view in ("fresh", "teacher"):
            ours, theirs = (data.inputs(batch, step, seed=3, student_view=view) for data in (streamed, whole))
            assert all(torch.equal(*both) for both in zip(ours, theirs, strict=True))
        said, expected = (data.teacher(batch.rows, ours[1]) for data in (streamed, whole))
        assert torch.equal(said.logits, expected.logits)
        assert torch.equal(said.features["layer2"], expected.features["layer2"])
        seen.append(batch.rows)
    assert [sorted(torch.cat(seen[first : first + 6]).tolist()) for first in (0, 6)] == [list(range(90))] * 2
    for name in ("val", "test"):
        pairs = zip(*(getattr(data, name).batches(data.rendering) for data in (streamed, whole)), strict=True)
        for (images, labels), (expected_images, expected_labels) in pairs:
            assert torch.equal(images, expected_images)
            assert torch.equal(labels, expected_labels)
    streamed.close()
    assert not reading_threads()


def test_rows_that_the_teacher_refused_are_left_out_of_blocks(built_store, tmp_path):
    kept = keep_as(built_store, tmp_path / "store", AnswerForm.read("logits"), 40)
    # One whole block of eight, and parts of others.
    refused = [0, *range(16, 24), 31, 39]
    kept.write_outputs(refused, empty_answers(kept.manifest.identity.outputs, len(refused)))
    kept.publish(refused)
    streamed, whole = (
        load(Store.open(tmp_path / "store"), None, LOGITS, CPU)
        for load in (lambda *a: load_data(*a, None, STREAM), StudentData.load)
    )
    assert (streamed.n, streamed.empty_answers, streamed.num_asked) == (whole.n, len(refused), 40)
    assert torch.equal(streamed.views, whole.views)
    assert torch.equal(streamed.train.labels, whole.train.labels)
    streamed.stream.hold(Visits(0, 0, streamed.stream.order.num_blocks))
    rows, views = torch.randperm(whole.n), torch.zeros(whole.n, dtype=torch.int64)
    assert torch.equal(streamed.images(rows), whole.images(rows))
    assert torch.equal(streamed.outputs["logits"][rows, views], whole.outputs["logits"][rows, views])
    streamed.close()
    # Without a buffer, from the disk.
    assert torch.equal(streamed.images(rows), whole.images(rows))


@pytest.mark.parametrize("form", ["logits", "log_probs", "probabilities", "top:3", "sampled:5", "label"])
def test_rows_without_content_are_those_that_all_answers_show(built_store, tmp_path, form):
    kept = keep_as(built_store, tmp_path / "store", AnswerForm.read(form), 40)
    refused = [0, *range(16, 24), 39]
    kept.write_outputs(refused, empty_answers(kept.manifest.identity.outputs, len(refused)))
    kept.publish(refused)
    store = Store.open(tmp_path / "store")
    names = store.manifest.identity.answer_names
    found = rows_with_content(Request.checked(store, None, replace(LOGITS, teacher=names), None, 1))
    answers = store.read_outputs(names, Rows.first(40))
    assert found.tolist() == np.flatnonzero(~is_empty({k: v[:, 0] for k, v in answers.items()})).tolist()
    assert found.tolist() == sorted(set(range(40)) - set(refused))


def test_no_answer_with_content_is_read_to_find_those_without(built_store, monkeypatch):
    seen, read = [], ArrayFile.read
    monkeypatch.setattr(ArrayFile, "read", lambda self, name, *rows: [seen.append(name), read(self, name, *rows)][1])
    assert rows_with_content(Request.checked(Store.open(built_store), None, LOGITS, None, 1)) is None
    assert DIGEST in seen
    assert "train/logits" not in seen


def test_an_answer_without_content_in_other_bits_is_found_when_it_is_read(built_store, tmp_path):
    kept = keep_as(built_store, tmp_path / "store", AnswerForm.read("logits"), 40)
    outputs = kept.manifest.identity.outputs
    kept.write_outputs([17], {name: -values for name, values in empty_answers(outputs, 1).items()})
    kept.publish([17])
    streamed = stream_of(tmp_path / "store", wanted=LOGITS)
    with pytest.raises(StoreUnreadable, match="an answer without content that is not written as others are"):
        streamed.stream.hold(Visits(0, 0, streamed.stream.order.num_blocks))
    streamed.close()


def test_too_few_rows_with_content_are_refused_without_reading_features(built_store, tmp_path):
    kept = keep_as(built_store, tmp_path / "store", AnswerForm.read("label"), 20)
    kept.write_outputs(range(1, 20), empty_answers(kept.manifest.identity.outputs, 19))
    kept.publish(range(1, 20))
    with pytest.raises(InvalidInput, match="1 of 20 rows of .* have an answer with content"):
        stream_of(tmp_path / "store", wanted=replace(LOGITS, teacher=("label",)))


def test_no_teacher_needs_no_outputs(built_store):
    streamed = stream_of(built_store, wanted=Wanted(student=(), teacher=(), parameters=False))
    assert streamed.outputs == {}
    assert streamed.teacher(torch.arange(3), torch.zeros(3, dtype=torch.int64)) is None


# When there is a stream, and how large it is


def test_what_does_not_fit_into_memory_streams_and_says_so(built_store, monkeypatch, caplog):
    assert stream_of(built_store, streaming=Streaming()).stream is None
    little_memory(monkeypatch, 2.7e6)
    with caplog.at_level(logging.WARNING):
        assert stream_of(built_store, streaming=Streaming()).stream is not None
    assert "images, layer2, logits of 96 rows take 0.0 GB" in caplog.text
    with pytest.raises(InvalidInput, match="leave it to a stream, as --stream does, lower --n"):
        stream_of(built_store, streaming=Streaming(never=True))


def test_where_one_rank_lacks_memory_all_stream(built_store, monkeypatch):
    free = threading.local()
    monkeypatch.setattr(request, "free_main_memory", lambda: free.bytes)

    def streams(ranks: Ranks, short: int | None) -> bool:
        free.bytes = 2.7e6 if ranks.rank == short else 1e9
        return stream_of(built_store, streaming=Streaming(ranks=ranks)).stream is not None

    assert in_ranks(2, partial(streams, short=None)) == [False, False]
    assert in_ranks(2, partial(streams, short=1)) == [True, True]


def test_ranks_of_one_machine_share_its_memory(built_store, monkeypatch, caplog):
    ranks = Ranks()
    needed = request.Request.checked(Store.open(built_store), None, MAPS, None).needed_bytes
    little_memory(monkeypatch, 1.5 * needed)
    assert stream_of(built_store, streaming=Streaming(ranks=ranks)).stream is None
    ranks.neighbours = 2
    assert stream_of(built_store, streaming=Streaming(rows=24, ranks=ranks)).stream is not None
    assert "of 96 rows take 0.0 GB in each of 2 ranks and 0.0 GB of memory are free" in caplog.text
    with pytest.raises(InvalidInput, match="the buffer of a stream would take"):
        stream_of(built_store, streaming=Streaming(rows=96, ranks=ranks))


def test_a_buffer_that_does_not_fit_is_refused(built_store, monkeypatch):
    little_memory(monkeypatch)
    with pytest.raises(InvalidInput, match="the buffer of a stream would take .* lower --stream-rows"):
        stream_of(built_store)


def test_the_buffer_follows_from_the_size_of_rows(built_store, monkeypatch):
    assert stream_of(built_store).stream.order.window == 3
    assert stream_of(built_store, streaming=Streaming(always=True)).stream.order.window == 12, "all of the blocks"
    monkeypatch.setattr(streamed_data, "LEAST_BLOCKS", 5)
    assert stream_of(built_store, streaming=Streaming(always=True)).stream.order.window == 1
    monkeypatch.setattr(streamed_data, "SHARE", 1)
    assert stream_of(built_store, streaming=Streaming(always=True)).stream.order.window == 8, "12 less what is ahead"
    row = Store.open(built_store).arrays.specs
    size = sum(row[name].row_bytes for name in ("train/images", "train/logits", "train/features/layer2"))
    monkeypatch.setattr(streamed_data, "MOST_BYTES", 10 * 8 * size)
    assert stream_of(built_store, streaming=Streaming(always=True)).stream.order.window == 6


def test_blocks_are_whole_chunks_of_images(built_store, monkeypatch):
    monkeypatch.undo()
    assert block_rows(Store.open(built_store)) == 64


def test_a_method_that_needs_all_rows_is_refused_before_answers_are_read(built_store, tmp_path, monkeypatch):
    method = "ckd:comparisons=24"
    with pytest.raises(InvalidInput, match="comparisons=24 draws groups once .* or lower --n to what fits") as refused:
        trainer_of(built_store, tmp_path / "run", method)
    assert "GB" not in str(refused.value)
    shared = SharedData()
    trainer_of(built_store, tmp_path / "run", load=shared.load, stream=True)
    with pytest.raises(InvalidInput, match="comparisons=24"):
        trainer_of(built_store, tmp_path / "run", method, load=shared.load)
    little_memory(monkeypatch)
    with pytest.raises(InvalidInput, match="^images, logits of 96 rows take .* leave comparisons out"):
        trainer_of(built_store, tmp_path / "run", method, stream_rows=None)


def test_a_store_with_one_digest_for_all_images_is_to_be_upgraded_first(built_store):
    store = Store.open(built_store)
    store.manifest = replace(store.manifest, older=OlderManifest(3, "0" * 64))
    with pytest.raises(OlderFormat, match="a block of images cannot be checked alone.*ckd-cache upgrade --store"):
        load_data(store, None, LOGITS, CPU, None, STREAM)


# Training


@pytest.mark.parametrize("method", ["kd", "ckd", "rkd", "fitnets"])
def test_a_resumed_run_of_a_stream_equals_an_uninterrupted_one(built_store, tmp_path, method):
    settings = {"max_evals": 2, "stream": True}
    whole = trainer_of(built_store, tmp_path / "whole", method, **settings)
    record = whole.run()
    assert record["streamed"] == {"block_rows": 8, "window_rows": 24}
    stopped = trainer_of(built_store, tmp_path / "stopped", method, **settings)
    step = stopped.train_step

    def stop_in_the_middle_of_an_epoch():
        if stopped.state.step == 8:
            os.kill(os.getpid(), signal.SIGINT)
        return step()

    stopped.train_step = stop_in_the_middle_of_an_epoch
    with pytest.raises(Interrupted, match="stopped after step 9"):
        stopped.run()
    assert not reading_threads()
    # What it began with need not be said again.
    resumed = trainer_of(built_store, tmp_path / "stopped", method, max_evals=2, stream_rows=None)
    resumed.run(resume=True)
    assert not reading_threads()
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


def test_training_takes_rows_from_the_buffer_alone(built_store, tmp_path, monkeypatch):
    trainer = trainer_of(built_store, tmp_path / "run", "ckd")
    monkeypatch.setattr(streamed_data.StoreBlocks, "rows", None)
    trainer.state.student.train()
    for _ in range(7):
        trainer.train_step()
    trainer.data.close()


def test_a_run_goes_on_with_the_same_stream_or_not_at_all(built_store, tmp_path, monkeypatch):
    trainer_of(built_store, tmp_path / "streamed", max_evals=1).run()
    trainer_of(built_store, tmp_path / "memory", max_evals=1, stream_rows=None).run()
    assert RunRecord.read(tmp_path / "memory").document().get("streamed") is None
    with pytest.raises(InvalidInput, match="was started with streamed.window_rows 24, not 32"):
        trainer_of(built_store, tmp_path / "streamed", max_evals=1, stream_rows=32).run(resume=True)
    with pytest.raises(InvalidInput, match="was started with streamed None, not"):
        trainer_of(built_store, tmp_path / "memory", max_evals=1).run(resume=True)
    little_memory(monkeypatch)
    with pytest.raises(InvalidInput, match="leave it to a stream"):
        trainer_of(built_store, tmp_path / "memory", max_evals=1, stream_rows=None)


def damage(store, row: int) -> None:
    arrays = Store.open(store).arrays
    values = arrays.read("train/logits", row, row + 1)
    arrays.write("train/logits", row, values + 1)
    arrays.sync()


def test_a_block_that_is_damaged_while_training_stops_it_in_a_sentence(built_store, tmp_path):
    shutil.copytree(built_store, tmp_path / "store")
    trainer = trainer_of(tmp_path / "store", tmp_path / "run", max_evals=5)
    step = trainer.train_step

    def damage_before_step_7():
        if trainer.state.step == 7:
            damage(tmp_path / "store", 50)
        return step()

    trainer.train_step = damage_before_step_7
    with pytest.raises(StoreUnreadable, match="train/logits of row 50 of .* does not match its digest; see all damage"):
        trainer.run()
    assert trainer.state.step > 7
    assert not reading_threads()


def test_the_command_reports_damage_in_a_line(built_store, tmp_path, capsys):
    shutil.copytree(built_store, tmp_path / "store")
    damage(tmp_path / "store", 50)
    words = ["--store", tmp_path / "store", "--student", "resnet8", "--method", "kd", "--max-evals", 1]
    words += ["--stream", "--out", tmp_path / "run", "--device", "cpu", "--precision", "fp32"]
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    assert ended.value.code == 2
    printed = capsys.readouterr().err.strip().splitlines()
    assert len(printed) == 1
    assert "train/logits of row 50" in printed[0]
    assert not (tmp_path / "run" / "run.json").exists()


def test_images_that_are_damaged_are_reported_by_the_evaluation(built_store, tmp_path):
    shutil.copytree(built_store, tmp_path / "store")
    trainer = trainer_of(tmp_path / "store", tmp_path / "run")
    arrays = Store.open(tmp_path / "store").arrays
    arrays.write("val/images", 3, 255 - arrays.read("val/images", 3, 4))
    arrays.sync()
    with pytest.raises(StoreUnreadable, match="val/images"):
        trainer.run()
    assert not reading_threads()


def test_an_anchored_student_has_the_bias_that_it_has_in_memory(built_store, tmp_path):
    biases = []
    for name, settings in (("stream", {}), ("memory", {"stream_rows": None})):
        trainer = trainer_of(built_store, tmp_path / name, "ckd", **settings)
        anchor(trainer.state.student, trainer.data, trainer.stepper.method)
        biases.append(trainer.state.student.head.bias)
    assert torch.equal(*biases)
    assert biases[0].any()
