"""Networks: what each consists of, what a recipe may freeze, and where its weights come from."""

from __future__ import annotations

from pathlib import Path
from urllib.error import URLError

import pytest
import safetensors.torch
import torch
from torch import nn
from torch.nn import functional

from models.errors import WeightsUnavailable
from models.networks import NETWORKS, Classifier, make_network
from models.serving import Fused, Serving
from models.vision import torchvision
from models.weights import load_backbone
from tests.builders import data_folder

COUNTS = {
    "resnet50": (24_559_170, 1_444_928),
    "resnet50_inner": (24_559_170, 1_444_928),
    "resnet50_two_stage": (24_688_962, 8_543_296),
    "efficientnet_b0": (4_010_110, 851_808),
    "mobilenet_v2": (2_226_434, 1_017_792),
    "inception_v3": (21_789_666, 8_965_856),
}
"""Parameters for two outputs, and how many of them keep still where the backbone is partially frozen."""


def count(network: nn.Module, *, is_frozen: bool = False) -> int:
    return sum(part.numel() for part in network.parameters() if not (is_frozen and part.requires_grad))


def on_meta(name: str) -> Classifier:
    with torch.device("meta"):
        return make_network(name, 2)


@pytest.fixture(scope="module")
def mobilenet() -> Classifier:
    torch.manual_seed(1)
    return make_network("mobilenet_v2", 2).eval()


def test_every_network_is_counted() -> None:
    assert set(NETWORKS) == set(COUNTS)


@pytest.mark.parametrize("name", COUNTS)
def test_network_has_the_known_number_of_parameters(name: str) -> None:
    network = on_meta(name)
    stages = sum(count(stage) for stage in network.stages())
    assert count(network) == COUNTS[name][0]
    assert stages == count(network.backbone)  # freezing all leaves nothing of the backbone out
    assert network.input_size == (299 if name == "inception_v3" else 224)


@pytest.mark.parametrize("name", COUNTS)
def test_partially_frozen_network_keeps_the_known_number_of_parameters(name: str) -> None:
    network = on_meta(name)
    network.freeze("partial")
    assert count(network, is_frozen=True) == COUNTS[name][1]
    network.freeze("all")
    assert count(network, is_frozen=True) == count(network.backbone)
    network.freeze("none")
    assert count(network, is_frozen=True) == 0


def test_mobilenet_trains_its_last_three_blocks_and_two_stage_its_last_layer() -> None:
    mobile, two_stage = on_meta("mobilenet_v2"), on_meta("resnet50_two_stage")
    for network in (mobile, two_stage):
        network.freeze("partial")
    trained = {key.split(".")[2] for key, part in mobile.backbone.named_parameters(prefix="x") if part.requires_grad}
    assert trained == {"16", "17", "18"}
    assert {key.split(".")[0] for key, part in two_stage.backbone.named_parameters() if part.requires_grad} == {
        "layer4"
    }


def test_unknown_network_and_unknown_freezing_are_named(mobilenet: Classifier) -> None:
    with pytest.raises(ValueError, match="resnet999"):
        make_network("resnet999", 2)
    with pytest.raises(ValueError, match="most"):
        mobilenet.freeze("most")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", COUNTS)
def test_network_serves_what_it_was_trained_to_say(name: str) -> None:
    """On a CPU in float32, and by the modules that serve in bf16 and on CUDA; of any size and number of images."""
    torch.manual_seed(2)
    network, seen_B1HW = make_network(name, 3), torch.rand(4, 1, 96, 96)
    for part in network.modules():  # batch norm that never saw a batch lets nothing of an image through
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            part.momentum = 1.0
    with torch.no_grad():
        network.train()(seen_B1HW)
    network.eval()
    device = torch.device("cpu")
    serving, fused = Serving(network, device, "fp32"), Fused(network.backbone, device, torch.float32)
    for image_B1HW in (seen_B1HW, torch.rand(1, 1, 128, 160)):
        with torch.inference_mode():
            logit_BL = network(image_B1HW)
            feature_BD = network.backbone(network.layout.seen(image_B1HW))
            fused_BD = fused(network.layout.seen(image_B1HW))
        served_BL, served_BD = serving(image_B1HW)
        assert (served_BL.shape, served_BD.shape) == (logit_BL.shape, feature_BD.shape)
        for said, meant in ((served_BL, logit_BL), (served_BD, feature_BD), (fused_BD, feature_BD)):
            assert (said - meant).abs().max() < 5e-3 * meant.abs().max()


def test_inner_network_looks_past_the_border_and_the_exposure() -> None:
    torch.manual_seed(4)
    network = make_network("resnet50_inner", 2)
    inner_B1HW = 0.2 + 0.6 * torch.rand(2, 1, 144, 144)
    shown_B3HW = network.layout.seen(functional.pad(inner_B1HW, (8,) * 4, value=1.0))
    assert shown_B3HW.shape == (2, 3, 144, 144)
    assert shown_B3HW.mean((1, 2, 3)).abs().max() < 1e-4
    assert (shown_B3HW.std((1, 2, 3), correction=0) - 1).abs().max() < 1e-4
    for other_B1HW in (functional.pad(inner_B1HW, (8,) * 4), functional.pad(0.5 * inner_B1HW + 0.3, (8,) * 4)):
        torch.testing.assert_close(network.layout.seen(other_B1HW), shown_B3HW, atol=1e-4, rtol=0)


def test_inner_network_sees_nothing_where_there_is_no_contrast() -> None:
    network = make_network("resnet50_inner", 2)
    assert not network.layout.seen(torch.full((1, 1, 64, 64), 0.5)).any()
    grain_B1HW = 0.5 + 1e-4 * torch.randn(1, 1, 64, 64)
    assert network.layout.seen(grain_B1HW).abs().max() < 0.1


def test_frozen_batch_norm_stays_as_it_was_while_the_rest_learns() -> None:
    torch.manual_seed(3)
    network = make_network("resnet50", 2)
    network.freeze("partial")
    before = {key: value.clone() for key, value in network.state_dict().items()}
    optimizer = torch.optim.SGD([part for part in network.parameters() if part.requires_grad], lr=0.1)
    network.eval()
    network.train()
    network(torch.rand(2, 1, 32, 32)).square().sum().backward()
    optimizer.step()
    changed = {key.rsplit(".", 1)[0] for key, value in network.state_dict().items() if not value.equal(before[key])}
    frozen = ("backbone.conv1", "backbone.bn1", "backbone.layer1", "backbone.layer2")
    assert not any(key.startswith(frozen) for key in changed)
    assert {"backbone.layer3.0.bn1", "backbone.layer4.2.conv3", "head.1", "head.3"} <= changed


def test_freezing_again_lets_go_of_the_former_part() -> None:
    network = make_network("mobilenet_v2", 2)
    network.freeze("all")
    network.train()
    assert not any(stage.training for stage in network.stages())
    assert network.head.training
    network.freeze("partial")
    assert [stage.training for stage in network.stages()] == 16 * [False] + 3 * [True]
    assert not any(part.training for part in network.eval().modules())


def test_torchvision_file_becomes_the_backbone(mobilenet: Classifier) -> None:
    file = data_folder("weights") / "mobilenet_v2_imagenet.pth"
    theirs = torch.load(file, weights_only=True)
    reference = torchvision.models.mobilenet_v2()
    reference.load_state_dict(theirs)
    load_backbone(mobilenet, file)
    image_B1HW = torch.rand(1, 1, 96, 96)
    with torch.inference_mode():
        feature_BD = mobilenet.backbone(mobilenet.layout.seen(image_B1HW))
        expected = reference.eval().features(mobilenet.layout.seen(image_B1HW)).mean((2, 3))
    torch.testing.assert_close(feature_BD, expected)


@pytest.mark.parametrize("kind", ["weights.safetensors", "checkpoint.pt"])
def test_our_own_weights_become_the_backbone_and_leave_the_head(
    kind: str, mobilenet: Classifier, tmp_path: Path
) -> None:
    file, state = tmp_path / kind, make_network("mobilenet_v2", 3).state_dict()
    if kind == "weights.safetensors":
        file.write_bytes(
            safetensors.torch.save({key: v.half() if v.is_floating_point() else v for key, v in state.items()})
        )
    else:
        torch.save({"recipe": {"seed": 1}, "epochs_done": 3, "network": {}, "averaged": state}, file)
    head = {key: value.clone() for key, value in mobilenet.head.state_dict().items()}
    load_backbone(mobilenet, file)
    for key, value in mobilenet.backbone.state_dict().items():
        torch.testing.assert_close(value, state[f"backbone.{key}"], atol=1e-3, rtol=1e-3)
    assert all(value.equal(head[key]) for key, value in mobilenet.head.state_dict().items())


def test_weights_of_another_architecture_are_named_in_one_line(mobilenet: Classifier, tmp_path: Path) -> None:
    file = tmp_path / "b0.pth"
    torch.save(torchvision.models.efficientnet_b0().state_dict(), file)
    with pytest.raises(WeightsUnavailable, match=r"b0\.pth: not the weights of mobilenet_v2: ") as error:
        load_backbone(mobilenet, file)
    assert "\n" not in str(error.value)


def test_weights_of_another_width_are_named_in_one_line(mobilenet: Classifier, tmp_path: Path) -> None:
    file = tmp_path / "half.pth"
    torch.save(torchvision.models.mobilenet_v2(width_mult=0.5).state_dict(), file)
    with pytest.raises(WeightsUnavailable, match=r"half\.pth: not the weights of mobilenet_v2: size mismatch") as error:
        load_backbone(mobilenet, file)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [None, b"", b"rubbish", b"\x80\x04cos\nsystem\n."])
@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_file_without_weights_is_named_in_one_line(
    name: str, content: bytes | None, mobilenet: Classifier, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsUnavailable, match=name) as error:
        load_backbone(mobilenet, tmp_path / name)
    assert "\n" not in str(error.value)


def test_saved_object_that_is_no_state_dict_is_refused(mobilenet: Classifier, tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "x.pt")
    with pytest.raises(WeightsUnavailable, match="no state dict"):
        load_backbone(mobilenet, tmp_path / "x.pt")


@pytest.mark.parametrize("name", COUNTS)
def test_imagenet_without_a_network_names_both_ways_out(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(url: str, *arguments: object, **options: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", refuse)
    with pytest.raises(WeightsUnavailable, match=r"--weights FILE .*--weights none") as error:
        load_backbone(on_meta(name), "imagenet")
    assert "no route to host" in str(error.value)
    assert "\n" not in str(error.value)


def test_imagenet_takes_what_torchvision_has_downloaded_before(
    mobilenet: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = torchvision.models.mobilenet_v2()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cached = tmp_path / "hub" / "checkpoints" / "mobilenet_v2-b0353104.pth"
    cached.parent.mkdir(parents=True)
    torch.save(reference.state_dict(), cached)
    load_backbone(mobilenet, "imagenet")
    assert mobilenet.backbone.features[0][0].weight.equal(reference.features[0][0].weight)  # type: ignore[index]
