"""Which call of which real client a test makes: the README's table is these lines, and each test is one that ran."""

from __future__ import annotations

MATRIX = {  # client, as pip installs it: call: where it is tested
    "huggingface_hub": {
        "InferenceClient.text_classification": "test_dialects.py::test_inference_client_classifies",
        "AsyncInferenceClient.text_classification": "test_dialects.py::test_async_inference_client_classifies",
        "HfHubHTTPError": "test_dialects.py::test_inference_client_shows_what_to_change",
    },
    "tei-client": {
        "HttpClient.classify": "test_dialects.py::test_tei_client_classifies_texts_pairs_and_batches",
        "HttpClient.async_classify": "test_dialects.py::test_tei_client_classifies_texts_pairs_and_batches",
        "HttpClient.info": "test_dialects.py::test_tei_client_classifies_texts_pairs_and_batches",
        "HttpClient.health": "test_dialects.py::test_tei_client_classifies_texts_pairs_and_batches",
    },
    "openai": {
        "OpenAI.post('/classify')": "test_dialects.py::test_openai_client_asks_vllms_classify_and_lists_models",
        "OpenAI.models.list": "test_dialects.py::test_openai_client_asks_vllms_classify_and_lists_models",
    },
    "nemoguardrails": {
        "VLLMBackend.classify": "test_dialects.py::test_nemo_guardrails_asks_vllms_classify",
    },
    "infinity_client": {
        "classify.sync": "test_dialects.py::test_infinity_client_classifies_and_lists_models",
        "classify.asyncio": "test_dialects.py::test_infinity_client_classifies_and_lists_models",
        "models.sync": "test_dialects.py::test_infinity_client_classifies_and_lists_models",
        "health.sync": "test_dialects.py::test_infinity_client_classifies_and_lists_models",
    },
}
