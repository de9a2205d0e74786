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
    "tritonclient[http]": {
        "InferenceServerClient.infer": "test_v2_clients.py::test_tritons_client_infers",
        "InferenceServerClient.get_model_metadata": "test_v2_clients.py::test_tritons_client_sees_what_is_served",
        "InferenceServerException": "test_v2_clients.py::test_tritons_client_reads_the_error",
    },
    "tritonclient[grpc]": {
        "InferenceServerClient.infer": "test_serve_grpc.py::test_tritons_client_over_grpc",
    },
    "kserve": {
        "InferenceRESTClient.infer (v2)": "test_v2_clients.py::test_kserves_client_speaks_v2",
        "InferenceRESTClient.infer (v1)": "test_v2_clients.py::test_kserves_client_speaks_v1",
        "InferenceRESTClient.is_server_live (v1)": "test_v2_clients.py::test_kserves_client_speaks_v1",
        "InferenceGRPCClient.infer": "test_serve_grpc.py::test_kserves_client_over_grpc_and_a_time_to_come_back",
    },
}
