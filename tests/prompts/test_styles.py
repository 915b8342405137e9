import pytest

from sd.prompts.styles import Style, find_style, read_styles, styles_for
from sd.prompts.weighting import parse_prompt
from sd.utils.errors import UserError


def test_a_style_around_a_prompt_or_behind_it():
    assert Style("a", "photo of {prompt}, sharp", "blur").apply("a cat", "dogs") == (
        "photo of a cat, sharp",
        "dogs, blur",
    )
    assert Style("b", "sharp", "").apply("a cat") == ("a cat, sharp", "")
    assert Style("c", "", "blur").apply("a cat") == ("a cat", "blur")
    assert Style("d", "{prompt} and {prompt}", "no {prompt}").apply("x", "y") == ("x and x", "no y")
    assert Style("e", "sharp", "").apply("") == ("sharp", "")
    styled, _ = Style("f", "photo of {prompt}", "").apply("a garden ADDCOMM a cat ADDCOL a dog")
    assert styled == "a garden ADDCOMM photo of a cat ADDCOL photo of a dog"


def test_tables_as_the_webui_writes_them(tmp_path):
    (tmp_path / "styles.csv").write_bytes(
        b"\xef\xbb\xbfname,prompt,negative_prompt\r\n"
        b'Old,"a, {prompt}, ""b""",c\r\n-- mine --,,\r\n,lost,\r\nshort,x\r\n'
    )
    (tmp_path / "styles-mine.csv").write_text("name,prompt,negative_prompt\nOld,mine,\nß,ü,\n", encoding="utf-8")
    styles = read_styles(tmp_path)
    assert styles == {
        "Old": Style("Old", "mine", ""),
        "-- mine --": Style("-- mine --", "", ""),
        "short": Style("short", "x", ""),
        "ß": Style("ß", "ü", ""),
    }
    assert [style.name for style in styles_for(False, tmp_path)] == ["Old", "short", "ß"]


def test_an_unknown_style_is_answered_with_those_that_exist(tmp_path):
    with pytest.raises(UserError, match=r"'nothing'; choose from photo, .*watercolor, "):
        find_style("nothing")
    with pytest.raises(UserError, match="there are no styles"):
        find_style("photo", tmp_path)


def test_a_table_that_is_none(tmp_path):
    (tmp_path / "styles.csv").write_bytes(b"name,prompt\n\xff\xfe,x\n")
    with pytest.raises(UserError, match=r"styles\.csv"):
        read_styles(tmp_path)


def test_our_own_styles_are_words_and_keep_the_prompt():
    for style in read_styles().values():
        assert "{prompt}" in style.prompt
        assert "{prompt}" not in style.negative_prompt
        assert parse_prompt(style.prompt + style.negative_prompt) == [(style.prompt + style.negative_prompt, 1.0)]


def test_the_bundled_models_styles_are_those_of_its_captions():
    from sd.training.pretrain.emoji_dataset import TRAINED_STYLES

    assert {style.apply("a cat") for style in styles_for(True)} == {(f"a cat, {style}", "") for style in TRAINED_STYLES}
    assert not {style.name for style in styles_for(True)} & {style.name for style in styles_for(False)}


def test_the_users_own_styles_come_last_and_count(tmp_path, monkeypatch):
    (tmp_path / "styles-mine.csv").write_text(
        "name,prompt,negative_prompt\nwatercolor,my watercolor,\nmine,{prompt}!,\n"
    )
    monkeypatch.setattr("sd.prompts.styles.OWN_DATA", tmp_path)
    found = read_styles()
    assert found["watercolor"].prompt == "my watercolor"
    assert found["mine"].apply("a cat") == ("a cat!", "")
    assert len(found) > 2
