"""The control types of the webui's ControlNet extension: what clients choose preprocessors and models by."""

from sd.checkpoints.discovery import BUNDLED_CONTROLNET
from sd.control.preprocessors import PREPROCESSORS
from sd.web.a1111.control_types import CONTROL_TYPES, describe_control_types

PUBLISHED = ["control_sd15_canny", "control_v11p_sd15_canny", "control_v11p_sd15_openpose", "ip-adapter_sd15"]


def test_a_type_has_the_preprocessors_and_models_of_its_name():
    assert describe_control_types(PUBLISHED)["Canny"] == {
        "module_list": ["none", "canny", "invert"],
        "model_list": ["None", "control_sd15_canny", "control_v11p_sd15_canny"],
        "default_option": "canny",
        "default_model": "control_v11p_sd15_canny",
    }
    assert describe_control_types(["t2iadapter_sketch_sd14v1"])["T2I-Adapter"] == {
        "module_list": ["none"],
        "model_list": ["None", "t2iadapter_sketch_sd14v1"],
        "default_option": "none",
        "default_model": "t2iadapter_sketch_sd14v1",
    }
    assert describe_control_types(["my IP_Adapter plus"])["IP-Adapter"]["default_model"] == "my IP_Adapter plus"


def test_the_bundled_controlnet_is_for_edges_and_for_scribbles():
    found = describe_control_types([BUNDLED_CONTROLNET.stem])
    assert found["Canny"]["default_model"] == found["Scribble"]["default_model"] == "emoji-edges"
    assert found["Tile"]["default_model"] == "None"
    theirs = describe_control_types(["control_v11p_sd15_canny", BUNDLED_CONTROLNET.stem])
    assert theirs["Canny"]["default_model"] == "control_v11p_sd15_canny"


def test_a_type_without_a_model_of_its_name_lists_all_but_a_reference_needs_none():
    found = describe_control_types(["contours", "lines"])
    assert found["Tile"] == {
        "module_list": ["none", "tile_resample", "blur_gaussian"],
        "model_list": ["None", "contours", "lines"],
        "default_option": "tile_resample",
        "default_model": "None",
    }
    assert found["Reference"] == {
        "module_list": ["none", "reference_only", "reference_adain", "reference_adain+attn"],
        "model_list": ["None"],
        "default_option": "reference_only",
        "default_model": "None",
    }


def test_a_type_without_a_preprocessor_is_listed_where_a_model_belongs_to_it():
    ours = {"All", "Canny", "IP-Adapter", "Inpaint", "Reference", "Scribble", "Tile"}
    assert set(describe_control_types([])) == ours
    assert set(describe_control_types(PUBLISHED)) == ours | {"OpenPose"}


def test_each_type_starts_with_one_of_its_preprocessors():
    found = describe_control_types([*PUBLISHED, *(name.lower() for name in CONTROL_TYPES)])
    assert set(found) == {"All", *CONTROL_TYPES}  # every row of the table has been looked at
    assert all(one["default_option"] in one["module_list"] for one in found.values())
    assert all(one["default_model"] in one["model_list"] for one in found.values())
    assert found["All"]["module_list"] == list(PREPROCESSORS)
