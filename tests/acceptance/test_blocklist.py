"""Lists of domains that never answered are made from finished datasets."""

from dataclasses import replace

from cahlib.commands.cli import main
from cahlib.dataset.manifest import encode_manifest, manifest_path
from tests.world import judged as world


def test_a_list_of_domains_is_built_from_datasets(tmp_path, capsys):
    folder, out = tmp_path / "set", str(tmp_path / "failed.txt")
    manifest = world.write(folder, shard="s-0")
    silent = "dead.example", "2606:4700::1", "gone.example", "host1.example"
    known = replace(manifest, silent=silent)
    (folder / manifest_path("s-0")).write_bytes(encode_manifest(known))
    assert main(["blocklist", "build", str(folder), "--output", out]) == 0
    capsys.readouterr()
    assert main(["blocklist", "show", out]) == 0
    # an image of host1.example is in the dataset
    assert capsys.readouterr().out == "2606:4700::1\ndead.example\ngone.example\n"
    assert main(["blocklist", "build", str(folder), "--output", out, "--least", "2"]) == 0
    capsys.readouterr()
    assert main(["blocklist", "show", out]) == 0
    assert capsys.readouterr() == ("", "# 0 domains\n")


def test_a_mistake_is_said(tmp_path, capsys):
    assert main(["blocklist", "build", str(tmp_path / "absent")]) == 2
    (tmp_path / "list").write_text("http://a.example/b.jpg\n")
    assert main(["blocklist", "show", str(tmp_path / "list")]) == 2
    assert "is not a valid domain" in capsys.readouterr().err
