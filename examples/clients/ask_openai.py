import openai

client = openai.OpenAI()
messages = [{"role": "user", "content": "Why is the sky blue?"}]
reply = client.chat.completions.create(model="qwen2.5-coder", messages=messages)
print(reply.choices[0].message.content)
