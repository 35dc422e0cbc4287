-- Delete what was not delivered to anybody; entries that somebody works on stay.
-- KEYS: streams. ARGV: group. Reply: how many were deleted.
local deleted = 0
for _, key in ipairs(KEYS) do
  if redis.call('XLEN', key) > 0 then
    local last = '0-0'
    for _, info in ipairs(redis.call('XINFO', 'GROUPS', key)) do
      local ours, id
      for i = 1, #info, 2 do
        if info[i] == 'name' then ours = info[i + 1] == ARGV[1] end
        if info[i] == 'last-delivered-id' then id = info[i + 1] end
      end
      if ours then last = id end
    end
    while true do
      local entries = redis.call('XRANGE', key, '(' .. last, '+', 'COUNT', 500)
      if #entries == 0 then break end
      local ids = {}
      for i, entry in ipairs(entries) do ids[i] = entry[1] end
      deleted = deleted + redis.call('XDEL', key, unpack(ids))
    end
  end
end
return deleted
