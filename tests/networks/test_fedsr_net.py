from __future__ import annotations

import pytest
import torch

from fedsr_monai.networks import FedSRNet, decoder
from fedsr_monai.networks.fedsr_net import crop_to, pad_to_stride
from fedsr_monai.networks.label_fractions import predicted_fractions
from fedsr_monai.networks.scie import DESIGNS


@pytest.fixture
def network(phantom) -> FedSRNet:
    torch.manual_seed(0)
    network = FedSRNet("small").eval()
    network.set_atlas(*phantom)
    network.initialise_sa()
    return network


def stir(network: FedSRNet) -> FedSRNet:
    """Move every parameter off its initial value, as training does."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape))
    return network


@pytest.mark.parametrize("shape", [(16, 32, 48), (33, 30, 17), (20, 5, 16)])
def test_logits_have_the_shape_of_the_image(network, shape):
    with torch.no_grad():
        logits = network(torch.rand(2, 1, *shape))
    assert logits.shape == (2, 14, *shape)
    assert logits.dtype == torch.float32


def test_padding_goes_to_the_ends_and_is_cropped_back(network):
    image = torch.rand(1, 1, 33, 30, 17)
    padded = pad_to_stride(image)
    assert padded.shape == (1, 1, 48, 32, 32)
    assert torch.equal(crop_to(padded, (33, 30, 17)), image) and padded.sum() == image.sum()
    with torch.no_grad():
        torch.testing.assert_close(network(image), crop_to(network(padded), (33, 30, 17)))


def test_sides_that_fit_are_not_copied():
    image = torch.rand(1, 1, 32, 48, 16)
    assert pad_to_stride(image) is image


def test_every_parameter_gets_a_gradient(network, phantom):
    stir(network)
    image = phantom[0][None].roll(1, dims=2)
    features = network.encoder(torch.cat([image, network.atlas_image]))
    logits, pooled = network.segment([f[:1] for f in features])
    found = network.align([f[:1] for f in features], [f[1:] for f in features], predicted_fractions(logits))
    (logits.square().mean() + found.full_ddf.square().mean()).backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_registration_does_not_move_the_segmentation_head(network, phantom):
    stir(network)
    features = network.encoder(phantom[0][None])
    logits, _ = network.segment(features)
    network.align(features, features, predicted_fractions(logits)).full_ddf.square().mean().backward()
    assert all(p.grad is None for p in network.segmentation.parameters())
    assert all(p.grad is not None for p in network.encoder.parameters())


@pytest.mark.parametrize(
    ("scie", "statistics"),
    [(True, "normalised"), (False, "normalised"), *((design, "convolution") for design in DESIGNS)],
)
def test_torchscript_equals_eager_on_other_images(phantom, scie, statistics):
    network = stir(FedSRNet("small", scie=scie, sa_statistics=statistics).set_atlas(*phantom)).eval()
    traced, scripted = torch.jit.trace(network, torch.rand(1, 1, 32, 32, 32)), torch.jit.script(network)
    image, other = torch.rand(1, 1, 32, 32, 32), torch.rand(2, 1, 20, 33, 17)
    with torch.no_grad():
        torch.testing.assert_close(traced(image), network(image), atol=1e-5, rtol=1e-5)
        for scan in (image, other):  # a script, unlike a trace, is not bound to one shape
            torch.testing.assert_close(scripted(scan), network(scan), atol=1e-5, rtol=1e-5)


def gradients(network, image):
    """Logits, field, and the gradients of both to every parameter of the heads."""
    network.zero_grad()
    features = network.encoder(torch.cat([image, network.atlas_image]))
    logits, _ = network.segment([f[:1] for f in features])
    field = network.align([f[:1] for f in features], [f[1:] for f in features], predicted_fractions(logits)).full_ddf
    (logits.square().mean() + field.square().mean()).backward()
    return {"logits": logits, "field": field, **{name: p.grad.clone() for name, p in network.named_parameters()}}


@pytest.mark.parametrize("label_guidance", [True, False])
def test_the_fast_passes_equal_the_plain_ones(phantom, monkeypatch, label_guidance):
    network = stir(FedSRNet("small", label_guidance=label_guidance).set_atlas(*phantom)).double()
    image = phantom[0][None].roll(1, dims=2).double()
    fast = gradients(network, image)
    monkeypatch.setattr(decoder, "may_bypass", lambda *blocks: False)
    plain = gradients(network, image)
    for name, value in fast.items():
        # The field is sampled in float32 whatever the network's type.
        torch.testing.assert_close(
            value, plain[name], atol=1e-5, rtol=1e-3, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_hooks_see_every_convolution_of_the_heads(network, phantom):
    called = []
    convolutions = {name: module for name, module in network.named_modules() if type(module) is torch.nn.Conv3d}
    handles = [
        module.register_forward_hook(lambda module, inputs, output, name=name: called.append(name))
        for name, module in convolutions.items()
    ]
    with torch.no_grad():
        hooked = network.predict(phantom[0][None])
        assert set(called) == set(convolutions)
        for handle in handles:
            handle.remove()
        free = network.predict(phantom[0][None])
    torch.testing.assert_close(hooked.logits, free.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(hooked.ddf, free.ddf, atol=1e-5, rtol=1e-5)


class Doubling(torch.nn.Module):
    def forward(self, weight):
        return 2 * weight


@pytest.mark.parametrize("name", ["segmentation.logits", "segmentation.detail.conv", "registration.fine.conv"])
def test_a_convolution_that_was_replaced_is_called(network, phantom, name):
    parent = network.get_submodule(name.rpartition(".")[0])
    assert decoder.may_bypass(network.get_submodule(name))
    torch.nn.utils.parametrize.register_parametrization(network.get_submodule(name), "weight", Doubling())
    assert not decoder.may_bypass(network.get_submodule(name))
    called = []
    setattr(parent, name.rpartition(".")[2], Counted(network.get_submodule(name), called))
    with torch.no_grad():
        network.predict(phantom[0][None])
    assert called


class Counted(torch.nn.Module):
    """Stands for a quantised convolution, say: another type, without weights of its own."""

    def __init__(self, inner, called):
        super().__init__()
        self.inner, self.called = inner, called

    def forward(self, x):
        self.called.append(x.shape)
        return self.inner(x)


def test_segmentation_does_not_depend_on_the_atlas(network):
    image = torch.rand(1, 1, 32, 32, 32)
    with torch.no_grad():
        before = network(image)
        network.set_atlas(torch.rand(1, 16, 16, 16), torch.ones(1, 16, 16, 16, dtype=torch.uint8))
        assert torch.equal(network(image), before)


def test_one_prediction_equals_forward_and_register(network, phantom):
    stir(network)
    network.set_atlas(phantom[0][:, :27, :30], phantom[1][:, :27, :30])  # padded on the way in, cropped on the way out
    scan = phantom[0][None, :, :27, :30].roll(1, dims=2)
    passes = []
    network.encoder.register_forward_hook(lambda module, inputs, output: passes.append(inputs[0].shape))
    with torch.no_grad():
        both, logits_alone = network.predict(scan), network.predict(scan, register=False)
        assert len(passes) == 3  # the scan once a call, the atlas where it is registered
        assert torch.equal(both.logits, network(scan)) and torch.equal(logits_alone.logits, both.logits)
        assert all(map(torch.equal, (both.ddf, both.warped_image), network.register(scan)))
    assert logits_alone.ddf is None and logits_alone.warped_image is None


@pytest.mark.parametrize("integrate", [True, False])
def test_registration_starts_near_the_identity(phantom, integrate):
    torch.manual_seed(0)
    network = FedSRNet("small", integrate=integrate)
    network.set_atlas(*phantom)
    image = phantom[0][None].roll(2, dims=3)
    with torch.no_grad():
        ddf, warped = network.register(image)
    assert ddf.shape == (1, 3, 32, 32, 32) and warped.shape == (1, 1, 32, 32, 32)
    assert 0 < ddf.abs().max() < 0.01  # voxels
    assert (warped - phantom[0]).abs().max() < 0.01
    assert torch.equal(network.warp_labels(ddf)[0], phantom[1])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_integrated_fields_do_not_fold_where_plain_ones_do(phantom, seed):
    folded = {}
    for integrate in (True, False):
        torch.manual_seed(seed)
        network = FedSRNet("small", integrate=integrate)
        network.set_atlas(*phantom)
        with torch.no_grad():
            for velocity in network.registration.velocities:
                # Displacements of a quarter of the grid. (At a third, some seeds fold a few voxels after any number of
                # squarings.)
                velocity.weight.normal_(std=0.025)
            ddf, _ = network.register(phantom[0][None])
        jacobian = torch.stack([torch.stack(torch.gradient(ddf[0, i])) for i in range(3)]) + torch.eye(3).view(
            3, 3, 1, 1, 1
        )
        folded[integrate] = (torch.linalg.det(jacobian.permute(2, 3, 4, 0, 1)) <= 0).float().mean().item()
    assert folded[False] > 0.003
    assert folded[True] == 0


def test_registration_pads_odd_grids(phantom):
    network = FedSRNet("small")
    network.set_atlas(phantom[0][:, :27, :30], phantom[1][:, :27, :30])
    with torch.no_grad():
        ddf, warped = network.register(phantom[0][None, :, :27, :30])
    assert ddf.shape == (1, 3, 27, 30, 32) and warped.shape == (1, 1, 27, 30, 32)


def test_registers_a_batch_like_each_scan_alone(network, phantom):
    stir(network)
    scans = torch.stack([phantom[0].roll(1, dims=1), phantom[0].roll(-1, dims=2)])
    with torch.no_grad():
        together, _ = network.register(scans)
        alone = torch.cat([network.register(scan[None])[0] for scan in scans])
    assert together.abs().max() > 0.05
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


def test_label_guidance_tells_the_registration_what_the_segmentation_sees(network, phantom):
    stir(network)
    with torch.no_grad():
        features = network.encoder(phantom[0][None])
        logits, _ = network.segment(features)
        fractions = predicted_fractions(logits)
        one, other = (
            network.align(features, features, guide).full_ddf for guide in (fractions, fractions.roll(3, dims=1))
        )
        assert not torch.equal(one, other)
        blind = stir(FedSRNet("small", label_guidance=False))
        blind.set_atlas(*phantom)
        features = blind.encoder(phantom[0][None])
        one, other = (
            blind.align(features, features, guide).full_ddf for guide in (fractions, fractions.roll(3, dims=1))
        )
        assert torch.equal(one, other)


def test_sa_vectors_start_from_the_labelled_atlas_and_guide_both_heads(network, phantom):
    stir(network)
    vectors = dict(network.sa.named_buffers())
    assert len(vectors) == 6 and all(vector.abs().sum() > 0 for vector in vectors.values())
    image = phantom[0][None]
    with torch.no_grad():
        logits, (ddf, _) = network(image), network.register(image)
        network.sa.registration[1].add_(1.0)
        assert torch.equal(network(image), logits) and not torch.equal(network.register(image)[0], ddf)
        network.sa.segmentation[1].add_(1.0)
        assert not torch.equal(network(image), logits)


def test_without_scie_there_are_no_such_parameters(phantom):
    network = FedSRNet("small", scie=False)
    assert not [name for name in network.state_dict() if "scie" in name]
    network.set_atlas(*phantom)
    with torch.no_grad():
        network.initialise_sa()  # the vectors are still measured: mutual information needs them
        assert network.sa.segmentation[0].any() and network(phantom[0][None]).shape == (1, 14, 32, 32, 32)


def test_state_dict_parts(network):
    parts = {name.split(".")[0] for name in network.state_dict()}
    assert parts == {"encoder", "registration", "segmentation", "sa", "atlas_image", "atlas_label"}


def test_atlas_takes_the_shape_that_is_loaded(network, phantom):
    other = FedSRNet("small")
    assert not other.has_atlas and other.atlas_image.shape == (1, 1, 16, 16, 16)
    other.load_state_dict(network.state_dict())
    assert other.has_atlas
    assert torch.equal(other.atlas_image[0], phantom[0]) and torch.equal(other.atlas_label[0], phantom[1])
    assert other.atlas_label.dtype == torch.uint8


def test_one_hot(network, phantom):
    one_hot = network.one_hot(phantom[1][None])
    assert one_hot.shape == (1, 14, 32, 32, 32) and torch.equal(
        one_hot.argmax(1, keepdim=True), phantom[1][None].long()
    )


def test_presets_differ_in_width_only():
    small, full = FedSRNet("small").state_dict(), FedSRNet("full").state_dict()
    assert list(small) == list(full)
    assert sum(t.numel() for t in full.values()) > 3 * sum(t.numel() for t in small.values())


def test_errors_name_what_is_wrong(network, phantom):
    with pytest.raises(ValueError, match=r"^FedSRNet\(\) 'preset' is 'huge'; expected one of \['full', 'small'\]$"):
        FedSRNet("huge")
    with pytest.raises(ValueError, match=r"^FedSRNet\(\) 'scie' 'normalise' needs sa_statistics 'convolution'"):
        FedSRNet(scie="normalise")
    with pytest.raises(
        ValueError,
        match=r"^set_atlas\(\) 'label' has shape \(1, 32, 32, 30\), 'image' has \(1, 32, 32, 32\); they must match$",
    ):
        network.set_atlas(phantom[0], phantom[1][..., :30])
    with pytest.raises(
        ValueError, match=r"^FedSRNet.register\(\) 'image' has shape \(32, 32, 16\), the atlas \(32, 32, 32\); resample"
    ):
        network.register(torch.rand(1, 1, 32, 32, 16))
    with pytest.raises(
        ValueError,
        match=r"^FedSRNet.register\(\) needs an atlas: call set_atlas\(\) or load a site's checkpoint first$",
    ):
        FedSRNet("small").register(torch.rand(1, 1, 16, 16, 16))


def test_no_gradient_of_the_logits_is_subnormal_and_the_weights_keep_theirs(network, phantom):
    image = phantom[0][None] + 0.1 * torch.rand(1, 1, *phantom[0].shape[1:])
    label = torch.zeros(1, *image.shape[2:], dtype=torch.long)

    def gradients(sure: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Gradients of the logits, as the network's last convolution gets them, and of that convolution's bias."""
        network.zero_grad()
        seen = []
        logits, _ = network.segment(network.encoder(image))
        logits.grad_fn.register_prehook(lambda grads: seen.append(grads[0]))
        offset = torch.zeros(1, 14, 1, 1, 1)
        offset[:, 0] = sure
        torch.nn.functional.cross_entropy(logits + offset, label).backward()
        return seen[0], network.segmentation.logits.bias.grad.clone()

    smallest = torch.finfo(torch.float32).tiny
    of_logits, _ = gradients(sure=85.0)  # probabilities of e^-85 and less
    assert torch.all((of_logits == 0) | (of_logits.abs() > smallest))
    of_logits, of_bias = gradients(sure=0.0)
    assert of_logits.abs().min() > 0
    torch.testing.assert_close(of_bias, of_logits.sum(dim=(0, 2, 3, 4)))
