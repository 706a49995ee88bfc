"""What a batch job asks for: study, site file, overrides, and what neither may do."""

from __future__ import annotations

import os

import pytest

from forebay.cluster.site import SiteTable, cluster_options, read_site
from forebay.pipeline.errors import StudyError
from forebay.pipeline.study import ClusterTable, study_from_dict

EVIL = ("a b", "x;reboot", "$(id)", "`id`", "x\n#SBATCH --uid=0", "'", '"', "-x", "x\\", "", "x\n")


@pytest.fixture
def site(tmp_path, monkeypatch):
    """Writes the site file."""
    path = tmp_path / "cluster.toml"
    monkeypatch.setenv("FOREBAY_CLUSTER", str(path))

    def write(text):
        path.write_text(text)
        return path

    return write


def test_the_study_goes_before_the_site_file_and_that_before_the_defaults(site):
    site('nodes = 3\ncores_per_node = 64\npartition = "cpu"\nsetup = ["module load gcc"]\nrequeues = 0')
    options = cluster_options(ClusterTable(nodes=2, time="1-02:03:04"), read_site())
    assert (options.nodes, options.cores_per_node, options.partition) == (2, 64, "cpu")
    assert options.setup == ("module load gcc",)
    assert options.time_s == 93784
    assert (options.signal_s, options.requeues, options.tmp, options.memory_gib) == (120, 0, "/tmp", None)


def test_without_a_site_file_the_study_says_it_all(tmp_path, monkeypatch):
    monkeypatch.delenv("FOREBAY_CLUSTER", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read_site() == SiteTable()
    assert cluster_options(ClusterTable(cores_per_node=7), read_site()).nodes == 1
    with pytest.raises(StudyError, match=r"cluster\.cores_per_node is missing; say in \[cluster\]"):
        cluster_options(ClusterTable(), read_site())


def test_the_site_file_is_found_at_home(tmp_path, monkeypatch):
    monkeypatch.delenv("FOREBAY_CLUSTER", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".config" / "forebay").mkdir(parents=True)
    (tmp_path / ".config" / "forebay" / "cluster.toml").write_text("cores_per_node = 11")
    assert read_site().cores_per_node == 11


@pytest.mark.parametrize("key", ["partition", "account", "qos"])
@pytest.mark.parametrize("value", EVIL)
def test_a_word_for_the_batch_system_is_a_plain_word(key, value):
    with pytest.raises(StudyError, match=rf"cluster\.{key} = "):
        study_from_dict({"name": "s", "problem": {"name": "darcy"}, "cluster": {key: value}})


@pytest.mark.parametrize("value", ["1:00", "01:00:00; id", "1:60:00", "01:00:00\n#SBATCH", "$(id)", "00:00"])
def test_a_time_is_a_time(value):
    with pytest.raises(StudyError, match=r"cluster\.time = "):
        study_from_dict({"name": "s", "problem": {"name": "darcy"}, "cluster": {"time": value}})


@pytest.mark.parametrize("name", EVIL)
def test_the_name_of_a_study_is_a_plain_word_too(name):
    with pytest.raises(StudyError, match="name = "):
        study_from_dict({"name": name, "problem": {"name": "darcy"}})


@pytest.mark.parametrize("key", ["setup", "extra"])
def test_code_in_a_study_is_refused_unless_the_user_allows_it(site, key):
    path = site("cores_per_node = 2")
    table = ClusterTable(**{key: ("--wrap=reboot",)})
    with pytest.raises(
        StudyError, match=rf"cluster\.{key} of a study would be run as it is.*move it to {path}.*--allow-setup"
    ):
        cluster_options(table, read_site())
    assert getattr(cluster_options(table, read_site(), allow_setup=True), key) == ("--wrap=reboot",)


@pytest.mark.parametrize(("lines", "message"), [(["--a\n--b"], "has a line break"), (["id"], "is no option")])
def test_extra_lines_are_options(site, lines, message):
    site("cores_per_node = 2")
    with pytest.raises(StudyError, match=message):
        cluster_options(ClusterTable(extra=tuple(lines)), read_site(), allow_setup=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nodes = 0", "nodes = 0 is not allowed"),
        ("node = 1", "node is not a known key; known keys: account, address"),
        ("nodes =", "is not valid TOML"),
        ('tmp = "/a/very/long/path/to/some/folder"', "tmp = '/a/very/long/path/to/some/folder' is not allowed"),
        ('python = "/bin/python; id"', "python = '/bin/python; id' is not allowed"),
    ],
)
def test_a_mistake_in_the_site_file_is_one_message(site, text, message):
    site(text)
    with pytest.raises(StudyError, match=message):
        read_site()


def test_a_site_file_that_everybody_can_change_is_refused(site):
    path = site("nodes = 2")
    path.chmod(0o646)
    with pytest.raises(StudyError, match=rf"could be changed by others.*chmod o-w {path}"):
        read_site()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file away")
def test_a_site_file_of_another_user_is_refused(site, monkeypatch):
    path = site("nodes = 2")
    monkeypatch.setattr(os, "getuid", lambda: 4321)
    assert read_site().nodes == 2  # root's
    os.chown(path, 1234, -1)
    with pytest.raises(StudyError, match="could be changed by others"):
        read_site()


def test_a_site_file_that_is_named_and_not_there_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("FOREBAY_CLUSTER", str(tmp_path / "none.toml"))
    with pytest.raises(StudyError, match=r"FOREBAY_CLUSTER names .*none\.toml, which does not exist"):
        read_site()


def test_a_limit_shorter_than_its_signal_is_refused(site):
    site("cores_per_node = 2")
    with pytest.raises(StudyError, match=r"cluster\.time = '00:01:00' is not longer than cluster\.signal_s = 120"):
        cluster_options(ClusterTable(time="00:01:00"), read_site())
    with pytest.raises(StudyError, match=r"'00:02:00' is not longer than cluster\.signal_s = 120"):
        cluster_options(ClusterTable(time="00:02:00"), read_site())
    assert cluster_options(ClusterTable(time="00:02:01"), read_site()).time_s == 121
