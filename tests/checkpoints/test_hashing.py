import hashlib

from sd.checkpoints import hashing as module
from sd.checkpoints.hashing import model_hash


def test_first_ten_digits_and_remembered(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CACHE", tmp_path / "cache" / "hashes.json")
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"weights")
    expected = hashlib.sha256(b"weights").hexdigest()[:10]
    assert model_hash(file) == expected
    monkeypatch.setattr(module.hashlib, "sha256", None)  # a second hashing would fail
    assert model_hash(file) == expected


def test_a_changed_file_is_hashed_again_and_a_broken_cache_does_not_matter(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CACHE", tmp_path / "hashes.json")
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"weights")
    first = model_hash(file)
    (tmp_path / "hashes.json").write_text("[broken")
    file.write_bytes(b"other weights")
    assert model_hash(file) == hashlib.sha256(b"other weights").hexdigest()[:10] != first


def test_a_folder_has_none(tmp_path):
    assert model_hash(tmp_path) == ""


def test_without_a_home_nothing_is_cached_and_nothing_fails(tmp_path, monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(module.Path, "home", no_home)
    monkeypatch.setattr(module, "CACHE", module.cache_dir() / "hashes.json")
    (tmp_path / "model.ckpt").write_bytes(b"weights")
    assert model_hash(tmp_path / "model.ckpt") == hashlib.sha256(b"weights").hexdigest()[:10]
