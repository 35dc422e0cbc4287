-- Hand entries back, to be delivered before what the stream holds; only those that this consumer still owns.
-- KEYS: a stream, its front stream. ARGV: group, consumer, then ids. Reply: how many were handed back.
local group, consumer, moved = ARGV[1], ARGV[2], 0
for i = 3, #ARGV do
  local id = ARGV[i]
  local pending = redis.pcall('XPENDING', KEYS[1], group, id, id, 1, consumer)
  if not pending.err and #pending > 0 then
    local entry = redis.call('XRANGE', KEYS[1], id, id)[1]
    redis.call('XACK', KEYS[1], group, id)
    redis.call('XDEL', KEYS[1], id)
    if entry then
      redis.call('XADD', KEYS[2], '*', unpack(entry[2]))
      moved = moved + 1
    end
  end
end
return moved
