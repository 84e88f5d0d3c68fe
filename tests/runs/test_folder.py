"""The names in a run's folder."""

from pathlib import Path

from minibule.runs.folder import RunFolder
from minibule.runs.settings import TrainConfig


def test_the_names_users_and_tools_rely_on():
    folder = RunFolder("run")
    config = TrainConfig(export=("hf", "gguf:q8_0", "gguf-lora", "gguf:f32", "none"))
    exports = ["merged", "model-q8_0.gguf", "adapter.gguf", "model-f32.gguf"]
    assert [path.name for _, path in folder.exports(config)] == exports
    assert folder.results(config) == [
        Path("run", name)
        for name in (
            *("config.toml", "metrics.jsonl", "checkpoint", "adapter"),
            *exports,
            *("before.json", "after.json", "report.html"),
        )
    ]
    assert (folder.manifest, folder.lock) == (Path("run/manifest.json"), Path("run/.lock"))
    assert RunFolder("run").exports(TrainConfig(export=("none",))) == []
