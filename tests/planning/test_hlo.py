"""Products and collectives counted from HLO against counts by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from vilem_jax.distributed.mesh import make_mesh
from vilem_jax.planning import hlo


def program(function, *shapes, **options) -> hlo.Program:
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return hlo.read(jax.jit(function, **options).lower(*arrays).compile().as_text())


def test_product_and_its_gradients_are_counted():
    def loss(x, w):
        return jnp.sum(jnp.tanh(x @ w) ** 2)

    once = program(loss, (8, 16), (16, 4))
    assert (once.flops, once.num_products) == (2 * 8 * 16 * 4, 1)
    both = program(jax.grad(loss, argnums=(0, 1)), (8, 16), (16, 4))
    assert (both.flops, both.num_products) == (3 * 2 * 8 * 16 * 4, 3)


def test_batched_product_counts_its_batch():
    found = program(
        lambda q, k: jnp.einsum("blhd,bshd->bhls", q, k), (3, 5, 2, 7), (3, 11, 2, 7)
    )
    assert found.flops == 2 * 3 * 2 * 5 * 11 * 7


def test_loop_body_counts_as_often_as_it_runs():
    def run(x, w):
        def body(total, _):
            inner = lax.fori_loop(0, 3, lambda _, y: jnp.tanh(y @ w), total)
            return jnp.sin(inner @ w), None

        return lax.scan(body, x, None, length=6)[0] @ w

    found = program(run, (8, 16), (16, 16))
    assert found.flops == (6 * (3 + 1) + 1) * 2 * 8 * 16 * 16
    assert found.num_products == 3 and found.unknown_loops == 0


def test_loop_of_unknown_length_is_reported():
    def run(x, w):
        return lax.while_loop(lambda y: y.sum() < 5, lambda y: jnp.tanh(y @ w), x)

    found = program(run, (8, 16), (16, 16))
    assert found.unknown_loops == 1
    assert found.flops == 2 * 8 * 16 * 16


@pytest.mark.parametrize("padding", ["VALID", "SAME"])
def test_convolution_counts_no_padding(padding):
    image, kernel = (2, 9, 9, 3), (3, 3, 3, 4)
    found = program(
        lambda x, k: lax.conv_general_dilated(
            x, k, (2, 2), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
        ),
        image,
        kernel,
    )
    offset = 0 if padding == "VALID" else 1
    side = 4 if padding == "VALID" else 5
    taps = sum(
        0 <= position * 2 - offset + tap < 9
        for position in range(side)
        for tap in range(3)
    )
    assert found.flops == 2 * taps**2 * 2 * 3 * 4


def test_batched_product_as_a_convolution_counts_its_diagonal():
    """TPUs write the batch as a spatial axis; all but its diagonal are holes."""
    text = """HloModule by_hand

ENTRY %main (a: bf16[6,4,8], b: bf16[6,8,5]) -> bf16[6,4,5] {
  %a = bf16[6,4,8]{2,1,0:T(8,128)(2,1)} parameter(0)
  %b = bf16[6,8,5]{2,1,0} parameter(1)
  ROOT %c = bf16[6,4,5]{2,1,0} convolution(%a, %b), window={size=6 stride=5 pad=0_0 \
lhs_dilate=6}, dim_labels=0bf_0io->0bf
}
"""
    assert hlo.read(text).flops == 2 * 6 * 4 * 8 * 5


def test_collectives_count_bytes_and_runs():
    mesh = make_mesh(8)
    rows, whole = (
        NamedSharding(mesh, PartitionSpec(*names)) for names in (("data",), ())
    )

    def run(x, w):
        def body(total, part):
            # A sum over rows on eight devices, all-reduced in each iteration.
            return lax.with_sharding_constraint(total + part.T @ part, whole), None

        return lax.scan(body, w, x.reshape(-1, 4, 16).swapaxes(0, 1))[0]

    found = program(
        run, (64, 16), (16, 16), in_shardings=(rows, whole), out_shardings=whole
    )
    sums = [one for one in found.collectives if one.kind == "all-reduce"]
    assert [(one.bytes, one.times, one.in_loop) for one in sums] == [
        (16 * 16 * 4, 4, True)
    ]
    assert sum(one.bytes * one.times for one in sums) == 4 * 16 * 16 * 4
    assert found.flops == 2 * 64 * 16 * 16 / 8

    gathered = program(
        lambda x: x * 2, (64, 16), in_shardings=rows, out_shardings=whole
    )
    (one,) = gathered.collectives
    assert (one.kind, one.bytes, one.times) == ("all-gather", 64 * 16 * 4, 1)
    assert not one.in_loop


def test_asynchronous_collectives_count_once():
    text = """HloModule by_hand

%sum (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %z = f32[] add(%x, %y)
}

ENTRY %main (a: f32[8,4]) -> f32[64,4] {
  %a = f32[8,4]{1,0} parameter(0)
  %r = f32[8,4]{1,0} all-reduce-start(%a), replica_groups={}, to_apply=%sum
  %d = f32[8,4]{1,0} all-reduce-done(%r)
  %g = (f32[8,4]{1,0}, f32[64,4]{1,0}) all-gather-start(%d), dimensions={0}
  ROOT %h = f32[64,4]{1,0} all-gather-done(%g)
}
"""
    found = hlo.read(text).collectives
    assert {one.kind: one.bytes for one in found} == {
        "all-reduce": 8 * 4 * 4,
        "all-gather": 64 * 4 * 4,
    }
    assert all(one.is_async for one in found)


def test_attention_of_cudnn_counts_its_products():
    """2 products of 2 B H L S D forward, 4 backward; other calls are listed alone."""
    text = """HloModule by_hand

ENTRY %main (q: bf16[2,6,3,8], k: bf16[2,4,3,8]) -> bf16[2,6,3,8] {
  %q = bf16[2,6,3,8]{3,2,1,0} parameter(0)
  %k = bf16[2,4,3,8]{3,2,1,0} parameter(1)
  %f = (bf16[2,6,3,8]{3,2,1,0}, u8[0]{0}) custom-call(%q, %k, %k), \
custom_call_target="__cudnn$fmhaSoftmax"
  %o = bf16[2,6,3,8]{3,2,1,0} get-tuple-element(%f), index=0
  %b = (bf16[2,6,3,8]{3,2,1,0}, u8[0]{0}) custom-call(%q, %k, %o), \
custom_call_target="__cudnn$fmhaSoftmaxBackward"
  ROOT %t = bf16[2,6,3,8]{3,2,1,0} custom-call(%o), custom_call_target="another"
}
"""
    found = hlo.read(text)
    assert found.flops == (2 + 4) * 2 * 2 * 3 * 6 * 4 * 8
    assert found.num_products == 6
    assert found.calls == {
        "__cudnn$fmhaSoftmax": 1,
        "__cudnn$fmhaSoftmaxBackward": 1,
        "another": 1,
    }


def test_sizes_of_shapes():
    assert hlo.dims("bf16[8,16]{1,0:T(8,128)(2,1)S(1)}") == (8, 16)
    assert hlo.dims("f32[]") == ()
    assert hlo.num_bytes("(bf16[8,2]{1,0}, f32[3]{0}, pred[5]{0}, s8[], u4[4])") == (
        32 + 12 + 5 + 1 + 2
    )
    assert hlo.num_bytes("f8e4m3fn[10]{0}") == 10
    with pytest.raises(ValueError, match="no HLO module"):
        hlo.read("hello")


def test_every_product_of_a_step_is_found(tiny_program):
    """As many as a search of the text finds."""
    text, found = tiny_program
    dots = text.count(" dot(") + text.count(" convolution(")
    assert dots == found.num_products > 50
    assert np.isfinite(found.flops) and found.unknown_loops == 0
