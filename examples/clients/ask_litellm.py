import litellm

messages = [{"role": "user", "content": "Why is the sky blue?"}]
reply = litellm.completion("openai/qwen2.5-coder", messages=messages)
print(reply.choices[0].message.content)
