-- Move an entry to the dead-letter stream as it is, with the reason.
-- KEYS: a stream, its dead-letter stream. ARGV: group, id, reason, about how many dead letters to keep.
-- Reply: the id of the dead letter, or nil if the entry is gone.
local entry = redis.call('XRANGE', KEYS[1], ARGV[2], ARGV[2])[1]
redis.pcall('XACK', KEYS[1], ARGV[1], ARGV[2])
redis.call('XDEL', KEYS[1], ARGV[2])
if not entry then return false end
return redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[4], '*',
  'stream', KEYS[1], 'id', ARGV[2], 'reason', ARGV[3], unpack(entry[2]))
