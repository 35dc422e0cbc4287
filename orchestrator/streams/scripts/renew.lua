-- Say that this consumer still works on its entries; JUSTID, because a renewal is not a delivery.
-- KEYS: a stream. ARGV: group, consumer, then ids. Reply: the ids that are no longer this consumer's.
local group, consumer, lost = ARGV[1], ARGV[2], {}
for i = 3, #ARGV do
  local id = ARGV[i]
  local pending = redis.pcall('XPENDING', KEYS[1], group, id, id, 1, consumer)
  if pending.err or #pending == 0 then
    lost[#lost + 1] = id
  else
    redis.call('XCLAIM', KEYS[1], group, consumer, 0, id, 'JUSTID')
  end
end
return lost
