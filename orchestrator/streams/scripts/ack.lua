-- Acknowledge and delete, both or neither: an entry that was only acknowledged would stay for ever.
-- KEYS: a stream. ARGV: group, then ids. Reply: how many were still pending.
local ids = {unpack(ARGV, 2)}
local acked = redis.call('XACK', KEYS[1], ARGV[1], unpack(ids))
redis.call('XDEL', KEYS[1], unpack(ids))
return acked
