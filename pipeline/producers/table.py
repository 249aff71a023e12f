"""The producers by kind, in the order in which a cache lists the kinds."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.producers.beams import BeamsProducer
from pipeline.producers.producer import Producer
from pipeline.producers.samples import SamplesProducer
from pipeline.producers.soft_targets import SoftTargetsProducer

PRODUCERS: Mapping[str, type[Producer]] = {
    producer.kind: producer for producer in (SoftTargetsProducer, SamplesProducer, BeamsProducer)
}
