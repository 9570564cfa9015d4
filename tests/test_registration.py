"""Claims about what `import sfvlm` does, and when: each in processes of its own, in which nothing has been imported."""

import pickle
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import tiny_config, tiny_model
from tiny_hosts import tiny_tower
from transformers import AutoModel

import sfvlm
from sfvlm.alternatives.configuration import ReducedTowerConfig
from sfvlm.alternatives.towers import reduce
from sfvlm.teachers.open import open_teacher

ROOT = Path(__file__).parents[1]


def run(code: str, *arguments: object) -> None:
    """Runs code in a new process, which fails if the code does."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def folders(clip_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A SparseFormer and a dense tower with few tokens, in folders."""
    out = tmp_path_factory.mktemp("towers")
    tiny_model().save_pretrained(out / "sparse")
    reduce(open_teacher(str(clip_folder)), "average", 4).save_pretrained(out / "reduced")
    return [out / "sparse", out / "reduced"]


def test_transformers_opens_our_models_when_it_is_imported_after_sfvlm(folders: list[Path]) -> None:
    run(
        """
import importlib, importlib.util, inspect, sys
import sfvlm
assert not {"torch", "transformers", "numpy"} & set(sys.modules)
looked_up = importlib.util.find_spec("sfvlm.registration")
from transformers import AutoConfig
assert "sfvlm.encoder.sparseformer" not in sys.modules and "transformers.modeling_utils" not in sys.modules

models = importlib.import_module("transformers").AutoModel
for folder, name in zip(sys.argv[1:], ("SparseFormer", "Reduced"), strict=True):
    config = AutoConfig.from_pretrained(folder)
    assert type(config).__name__.startswith(name), config
    assert type(models.from_pretrained(folder)).__name__.startswith(name)
    assert type(models.from_config(config)).__name__.startswith(name)

# The module that was waited for is like any other; imported anew it knows our configurations again.
module = sys.modules["transformers.models.auto.configuration_auto"]
assert type(module.__loader__).__module__ == type(module.__spec__.loader).__module__ == "_frozen_importlib_external"
assert "class AutoConfig" in inspect.getsource(module)
spec = importlib.util.find_spec("transformers.models.auto.configuration_auto")
assert "class AutoConfig" in spec.loader.get_source(spec.name)
assert "sparseformer" in importlib.reload(module).CONFIG_MAPPING and "sfvlm_reduced" in module.CONFIG_MAPPING
""",
        *folders,
    )


def test_transformers_opens_our_models_when_it_was_imported_before_sfvlm(
    folders: list[Path], swapped_folder: Path
) -> None:
    run(
        """
import sys
from transformers import AutoConfig, AutoModel, LlavaForConditionalGeneration
assert "sparseformer" not in AutoConfig.for_model.__globals__["CONFIG_MAPPING"]
import sfvlm
assert "sfvlm.encoder.sparseformer" not in sys.modules
host, *towers = sys.argv[1:]
assert type(LlavaForConditionalGeneration.from_pretrained(host).model.vision_tower).__name__ == "SparseFormerModel"
for folder, name in zip(towers, ("SparseFormer", "Reduced"), strict=True):
    assert type(AutoModel.from_pretrained(folder)).__name__.startswith(name)
""",
        swapped_folder,
        *folders,
    )


def test_an_unpickled_configuration_has_its_model(tmp_path: Path, folders: list[Path]) -> None:
    configs = [tiny_config(), ReducedTowerConfig.from_pretrained(folders[1])]
    (tmp_path / "configs").write_bytes(pickle.dumps(configs))
    run(
        """
import pickle, sys
from pathlib import Path
from transformers import AutoModel
for config in pickle.loads(Path(sys.argv[1]).read_bytes()):
    assert type(AutoModel.from_config(config)).config_class is type(config)
""",
        tmp_path / "configs",
    )


@pytest.mark.parametrize(
    ("moment", "auto", "thread"),
    [
        ("transformers.utils.versions", "not yet", "same"),
        ("transformers.models.auto.auto_mappings", "half", "another"),
        ("transformers.safetensors_conversion", "there", "same"),
    ],
)
def test_sfvlm_may_be_imported_while_transformers_is(
    moment: str, auto: str, thread: str, folders: list[Path], swapped_folder: Path
) -> None:
    """Before, amid and behind the module of AutoConfig, while `transformers.modeling_utils` is half imported."""
    run(
        """
import sys, threading
moment, auto, thread, host, *folders = sys.argv[1:]
threads = []

class Meanwhile:
    "Imports sfvlm when the module is looked for."
    def find_spec(self, name, path, target=None):
        if name != moment:
            return None
        sys.meta_path.remove(self)
        module = sys.modules.get("transformers.models.auto.configuration_auto")
        assert auto == ("not yet" if module is None else "there" if hasattr(module, "AutoConfig") else "half")
        if thread == "same":
            import sfvlm
        else:
            threads.append(threading.Thread(target=__import__, args=["sfvlm"]))
            threads[0].start()
            threads[0].join(0.5)
            assert threads[0].is_alive(), "it waits for this import"

sys.meta_path.insert(0, Meanwhile())
import transformers.modeling_utils
for each in threads:
    each.join()
assert "sfvlm" in sys.modules and "sfvlm.encoder.sparseformer" not in sys.modules
from transformers import AutoModel, LlavaForConditionalGeneration
assert type(LlavaForConditionalGeneration.from_pretrained(host).model.vision_tower).__name__ == "SparseFormerModel"
for folder in folders:
    assert AutoModel.from_pretrained(folder).config.model_type in ("sparseformer", "sfvlm_reduced")
""",
        moment,
        auto,
        thread,
        swapped_folder,
        *folders,
    )


def test_public_names_are_what_they_say_with_all_modules_there() -> None:
    names: dict[str, object] = {}
    exec("import sfvlm.hosts.swap, sfvlm.alternatives.towers, sfvlm.encoder.showlab\nfrom sfvlm import *", names)
    assert set(sfvlm.__all__) <= set(names) & set(dir(sfvlm))
    assert [getattr(names[each], "__name__", None) for each in sfvlm.__all__] == sfvlm.__all__
    assert sfvlm.encoder.showlab is sys.modules["sfvlm.encoder.showlab"]


def test_no_public_name_is_a_modules_too() -> None:
    """Importing a module puts it into the package under its name, in the place of what was there."""
    modules = {each.name for each in pkgutil.iter_modules(sfvlm.__path__)}
    assert "encoder" in modules and not modules & set(sfvlm.__all__)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    assert not hasattr(sfvlm, "nothing") and not hasattr(sfvlm, "__wrapped__")
    with pytest.raises(ImportError, match="cannot import name 'nothing' from 'sfvlm'"):
        from sfvlm import nothing  # noqa: F401


def test_a_module_that_lacks_a_package_says_which(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "wants.py").write_text("import not_installed")
    monkeypatch.setattr(sfvlm, "__path__", [*sfvlm.__path__, str(tmp_path)])
    with pytest.raises(ModuleNotFoundError, match="No module named 'not_installed'"):
        _ = sfvlm.wants


def test_the_version_is_the_one_that_is_packaged() -> None:
    found = re.findall(r'^__version__ = "(.*)"$', (ROOT / "sfvlm" / "__init__.py").read_text(), re.M)
    assert found == [sfvlm.__version__]


def test_a_models_class_is_the_registered_one() -> None:
    assert type(AutoModel.from_config(tiny_tower().config)) is sfvlm.SparseFormerModel
