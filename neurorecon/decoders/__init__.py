"""Decoders trained to give the movie straight from the responses: opponents and starts of the reconstruction."""

from neurorecon.decoders.convolutional import ConvolutionalDecoder, fit_convolutional_decoder, load_decoder
from neurorecon.decoders.linear_stage import LinearStage, fit_linear_stage
from neurorecon.decoders.settings import DecoderSettings

__all__ = [
    "ConvolutionalDecoder",
    "DecoderSettings",
    "LinearStage",
    "fit_convolutional_decoder",
    "fit_linear_stage",
    "load_decoder",
]
