"""What a teacher said is read back as it was said; what it did not say is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from maieutic.backends.local import LocalBackend
from maieutic.errors import ConfigError, DataError, ModelError
from maieutic.teachers import RecordedTeacher
from maieutic.teachers.recording import said_of
from maieutic.teachers.records import Origin, Records, Said, fingerprint, key_of


def recorded(folder, models, batch, top_k=6, parts=2, **origin):
    """A recording of the batch's rows in so many parts."""
    teacher = LocalBackend().teacher(models(1), models(0), top_k)
    vocabulary = models(0).tokenizer.get_vocab()
    records = Records.begin(folder, Origin("models/1", fingerprint(vocabulary), len(vocabulary), top_k, **origin))
    for part in torch.arange(batch.size).chunk(parts):
        records.add(said_of(teacher, batch.rows(part)))
    return teacher, vocabulary


@pytest.mark.parametrize(("numbers", "tolerance"), [("float32", 0.0), ("float16", 1e-3)])
def test_it_says_what_was_said(tmp_path, models, batch, numbers, tolerance):
    teacher, vocabulary = recorded(tmp_path / "said", models, batch, numbers=numbers)
    found = RecordedTeacher(tmp_path / "said", vocabulary)
    ids, logprobs = teacher.top(batch)
    for order in (torch.arange(5), torch.tensor([3, 1, 0])):
        some_ids, some_logprobs = found.top(batch.rows(order))
        assert torch.equal(some_ids, ids[order])
        # the recorder asked in other micro-batches, so sums have another order
        torch.testing.assert_close(some_logprobs, logprobs[order], rtol=tolerance, atol=1e-5)
        own = teacher.logprobs(batch)[order]
        torch.testing.assert_close(found.logprobs(batch.rows(order)), own, rtol=0, atol=1e-5)
    assert len(found.records) == 4  # two of the five rows are the same


def test_fewer_candidates_are_the_likeliest_of_them(tmp_path, models, batch):
    teacher, vocabulary = recorded(tmp_path / "said", models, batch)
    ids, logprobs = RecordedTeacher(tmp_path / "said", vocabulary, top_k=2).top(batch)
    assert torch.equal(ids, teacher.top(batch)[0][..., :2])
    torch.testing.assert_close(logprobs, teacher.top(batch)[1][..., :2], rtol=0, atol=1e-5)
    for wrong in (0, 7):
        with pytest.raises(ConfigError, match=f"top_k = {wrong}; expected 1 to the 6"):
            RecordedTeacher(tmp_path / "said", vocabulary, top_k=wrong)


def test_what_was_not_recorded_is_refused(tmp_path, models, batch):
    _, vocabulary = recorded(tmp_path / "said", models, batch)
    found = RecordedTeacher(tmp_path / "said", vocabulary)
    tokens = batch.tokens.clone()
    tokens[3, 1] += 1
    with pytest.raises(DataError, match=r"b/7: a sequence of 6 tokens \(9 10 .*\) is not among the 4 .*models/1 said"):
        found.top(replace(batch, tokens=tokens))
    mask = batch.mask.clone()
    mask[0, 6] = True  # what the tool wrote
    with pytest.raises(DataError, match=r"a/1: token 6 is to be learned, .* says nothing of it"):
        found.logprobs(replace(batch, mask=mask))
    with pytest.raises(DataError, match=r"temperature 0\.5; .* recorded at 1"):
        found.top(replace(batch, temperature=0.5))
    fewer = batch.mask.clone()
    fewer[0, 5:] = False  # learning from less than was recorded is no harm
    assert not found.top(replace(batch, mask=fewer))[0][~fewer].any()


def test_another_vocabulary_is_refused(tmp_path, models, batch):
    recorded(tmp_path / "said", models, batch)
    other = models(0, [f"w{i}" for i in range(27)]).tokenizer.get_vocab()
    with pytest.raises(ModelError, match=r"models/1 said of 32 tokens .* for a policy of 32; .*maieutic teacher write"):
        RecordedTeacher(tmp_path / "said", other)


def test_fingerprints_differ_where_ids_do():
    assert fingerprint({"a": 0, "b": 1}) == fingerprint({"b": 1, "a": 0})
    assert len({fingerprint(v) for v in ({"a": 0, "b": 1}, {"a": 1, "b": 0}, {"a": 0}, {"a": 0, "c": 1})}) == 4


def test_a_recording_is_gone_on_with_by_the_same_teacher_only(tmp_path, models, batch):
    recorded(tmp_path / "said", models, batch)
    before = {path.name: path.read_bytes() for path in (tmp_path / "said").iterdir()}
    _, vocabulary = recorded(tmp_path / "said", models, batch.rows(torch.tensor([0])))
    assert {name: (tmp_path / "said" / name).read_bytes() for name in before} == before
    with pytest.raises(ConfigError, match=r"was begun otherwise: top_k was 6 and is 3"):
        recorded(tmp_path / "said", models, batch, top_k=3)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds something else"):
        recorded(tmp_path / "other", models, batch)
    with pytest.raises(DataError, match=r"expected what a teacher said, as `maieutic teacher record` writes it"):
        RecordedTeacher(tmp_path / "other", vocabulary)


def test_what_was_left_by_a_kill_is_no_part(tmp_path, models, batch):
    """The temporary file of a part that was being written, and a part that is not whole."""
    teacher, vocabulary = recorded(tmp_path / "said", models, batch)
    (tmp_path / "said" / ".tmp-1-part-00002.safetensors").write_bytes(b"half")
    assert torch.equal(RecordedTeacher(tmp_path / "said", vocabulary).top(batch)[0], teacher.top(batch)[0])
    (tmp_path / "said" / "part-00001.safetensors").write_bytes(b"half")
    with pytest.raises(DataError, match=r"part-00001.* cannot be read .* record again"):
        RecordedTeacher(tmp_path / "said", vocabulary)


def test_keys_are_of_whole_sequences():
    assert key_of(torch.tensor([1, 2, 3])) != key_of(torch.tensor([1, 2]))
    assert key_of(torch.tensor([1, 2, 3])[:2]) == key_of(torch.tensor([1, 2]))


def test_bytes_a_position(tmp_path):
    """K = 20: 4 bytes for the place, 4 for the token's own log-prob, 8 for each candidate; 6 in float16."""
    sizes = {}
    for numbers in ("float32", "float16"):
        records = Records.begin(tmp_path / numbers, Origin("t", "v", 5, 20, numbers=numbers))
        records.add({
            b"k" * 16: Said(torch.arange(1000), torch.zeros(1000), torch.zeros(1000, 20).long(), torch.zeros(1000, 20))
        })  # fmt: skip
        sizes[numbers] = (tmp_path / numbers / "part-00000.safetensors").stat().st_size
    assert sizes["float32"] == pytest.approx(1000 * 168, rel=0.01)
    assert sizes["float16"] == pytest.approx(1000 * 128, rel=0.01)
